"""Why a set of instances is what it is, and what would have to change for more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Final

from flagvega.serve.choose import (
    POOLED,
    Fleet,
    Outlook,
    Problem,
    highest_rate,
    look,
    members_of,
    pack,
    take_alone,
    whole,
)
from flagvega.serve.curve import Row, curve_of
from flagvega.serve.forecast import REFUSED, forecast
from flagvega.serve.traffic import Answered, Targets, draw, percentile

BUSY: Final = 0.7
"""Share of its places beyond which an instance has as much to do as chance allows."""
MOST_MORE: Final = 16
"""Chips more than there are, that are tried."""
BEARABLE: Final = 5.0
"""Times a target: what is further away is no small change."""


@dataclass(frozen=True)
class Gain:
    """What one more chip of a kind would bring."""

    chip: str
    rate_per_s: float
    """The highest rate at which the targets would hold."""


def rate_of(fleet: Fleet, problem: Problem) -> float:
    """The highest rate at which a set holds the targets, in requests a second."""
    members = [kind.member for kind in members_of(fleet)]
    return highest_rate(members, problem.traffic, problem.targets, POOLED * take_alone(fleet))


def find_gains(fleet: Fleet, problem: Problem) -> list[Gain]:
    """What the smallest instance more on each kind of chip would bring."""
    gains = []
    for chip in problem.counts:
        if sizes := [kind.row.num_devices for kind in problem.kinds if kind.row.chip == chip]:
            more = (*fleet, *pack(problem.kinds, chip, min(sizes))[-1])
            gains.append(Gain(chip, rate_of(more, problem)))
    return sorted(gains, key=lambda gain: -gain.rate_per_s)


def find_limit(outlook: Outlook) -> str:
    """What is short first, in words: the fullest instance, and why it is not fuller."""
    members, shares = outlook.members, outlook.forecast.shares
    fullest = max(range(len(members)), key=lambda i: shares[i].sequences / members[i].slots)
    kind, share = members[fullest], shares[fullest]
    if share.num_preempted > share.num_requests / 100:
        return f"the cache of {kind.row.name}: {share.num_preempted} answers had to be begun anew"
    what = f"{kind.row.name}: {share.sequences:.1f} of {kind.slots} places are taken on average"
    reading = f"; prompts take {share.reading:.0%} of its time" if share.reading > 0.05 else ""
    return f"{what}{reading}; {kind.bound}" if share.sequences > BUSY * kind.slots else f"nothing: {what}"


def misses(answers: Sequence[Answered], targets: Targets) -> Counter[str]:
    """Requests that miss the targets, by how."""
    found = Counter[str]()
    for answer in answers:
        if answer.error:
            found["refused early" if answer.error == REFUSED else answer.error] += 1
        elif targets.first_token_s is not None and answer.first_token_s > targets.first_token_s:
            found["first token late"] += 1
        elif not answer.meets(targets):
            found["tokens too slow"] += 1
    return found


# ---- what does not hold ----


def why_never(rows: Sequence[Row], problem: Problem) -> Iterator[str]:
    """Why each form does not meet the targets, however few requests there are."""
    for row in rows:
        curve = curve_of(row)
        first_s = curve.overhead_s + curve.step_s(1, problem.traffic.input_tokens.longest)
        yield (
            f"{row.name}: alone, a token comes every {curve.step_s(1):.3g} s, and the first one of the longest prompt "
            f"after {first_s:.3g} s"
        )


def find_changes(problem: Problem) -> list[str]:
    """What would have to change, one thing at a time, for the targets to hold: words, the smallest change of each."""
    fleet = whole(problem)
    rate = rate_of(fleet, problem)
    found = [f"a rate of {rate:.3g} requests/s"] if rate else []
    for chip in problem.counts:
        if number := _more(problem, chip):
            found.append(f"{number} more {chip}")
    return found + _bearable(fleet, problem)


def _more(problem: Problem, chip: str) -> int | None:
    """Chips more that would do."""
    if not any(kind.row.chip == chip for kind in problem.kinds):
        return None

    def enough(number: int) -> bool:
        more = replace(problem, counts={**problem.counts, chip: problem.counts[chip] + number})
        if POOLED * take_alone(whole(more)) < problem.rate_per_s:
            return False
        return look(whole(more), more).outcome.good_share >= problem.targets.share

    high = 1
    while high <= MOST_MORE and not enough(high):
        high *= 2
    if high > MOST_MORE:
        return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _bearable(fleet: Fleet, problem: Problem) -> list[str]:
    """Targets that all devices together would hold at this rate, where they are not far from those asked for."""
    targets = problem.targets
    answers = forecast([kind.member for kind in members_of(fleet)], draw(problem.traffic), inf).answers
    firsts = percentile(sorted(answer.first_token_s for answer in answers), targets.share)
    betweens = percentile(sorted(answer.per_token_s for answer in answers), targets.share)
    given = {"first_token_s": (targets.first_token_s, firsts), "per_token_s": (targets.per_token_s, betweens)}
    needed = [f"{name} {value:.3g}" for name, (target, value) in given.items() if target and value > target]
    far = any(target and value > BEARABLE * target for target, value in given.values())
    return [f"targets of {' and '.join(needed)}"] if needed and not far else []
