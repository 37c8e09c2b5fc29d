"""Why a set of instances is what it is, and what would have to change for more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Final

from flagvega.serve.choose import most
from flagvega.serve.curve import Row, curve_of
from flagvega.serve.fleets import POOLED, Fleet, Outlook, Problem, add, look, members_of, take_alone, whole, works
from flagvega.serve.forecast import REFUSED, Share, forecast
from flagvega.serve.kinds import Kind, highest_rate
from flagvega.serve.traffic import Answered, Targets, draw, percentile

BUSY: Final = 0.7
"""Share of its places beyond which an instance has as much to do as chance allows."""
MOST_MORE: Final = 16
"""Chips more than there are, that are tried."""
LOOK_S: Final = 1.0
"""For each number of chips more, to look for roles."""
RAISED: Final = 1.2
"""Times what is held: a rate at which it shows what one more brings."""
BEARABLE: Final = 5.0
"""Times a target: what is further away is no small change."""


@dataclass(frozen=True)
class Gain:
    """What one more chip of a kind would bring."""

    chip: str
    name: str
    """Of the kind of instance on it."""
    rate_per_s: float
    """The highest rate at which the targets would hold."""


def rate_of(fleet: Fleet, problem: Problem) -> float:
    """The highest rate at which a set holds the targets, in requests a second."""
    members = [kind.member for kind in members_of(fleet)]
    start = POOLED * take_alone(fleet, problem)
    return highest_rate(members, problem.traffic, problem.targets, start, passing=problem.passing)


def find_gains(fleet: Fleet, problem: Problem, rate_per_s: float) -> list[Gain]:
    """What the smallest instance more on each kind of chip would bring, with the role in which it brings most.

    ``rate_per_s`` is the highest at which ``fleet`` holds the targets.
    """
    raised = replace(problem, traffic=replace(problem.traffic, rate_per_s=RAISED * (rate_per_s or problem.rate_per_s)))
    gains = []
    for chip in problem.counts:
        own = [kind for kind in (*problem.kinds, *problem.split) if kind.row.chip == chip]
        size = min((kind.row.num_devices for kind in own), default=0)
        more = {kind: add(fleet, {kind: 1}) for kind in own if kind.row.num_devices == size}
        able = [kind for kind, found in more.items() if works(found, problem)]
        if able:
            kind = able[0]
            if len(able) > 1:
                kind = max(able, key=lambda each: look(more[each], raised).outcome.good_share)
            gains.append(Gain(chip, kind.name, rate_of(more[kind], problem)))
    return sorted(gains, key=lambda gain: -gain.rate_per_s)


def tell_roles(outlook: Outlook, problem: Problem) -> str:
    """Whether instances have roles, and what else would come of them, in words."""
    other = outlook.other
    would = f"{other.outcome.goodput_per_s:.3g} requests/s would meet the targets" if other else ""
    if outlook.has_roles:
        return f"roles: without them {would}" if other else "roles: without them no set does it"
    if not problem.split:
        return ""
    if other:
        names = ", ".join(f"{number} x {kind.name}" for kind, number in other.fleet)
        return f"no roles: with them ({names}) {would}"
    return "no roles: nearly all requests meet the targets without them"


def find_limit(outlook: Outlook) -> str:
    """What is short first, in words: the fullest instance, and why it is not fuller."""
    members, shares = outlook.members, outlook.forecast.shares
    kind, share = max(zip(members, shares, strict=True), key=lambda pair: _fullness(*pair))
    if share.num_preempted > share.num_requests / 100:
        return f"the cache of {kind.row.name}: {share.num_preempted} answers had to be begun anew"
    fullness = _fullness(kind, share)
    if kind.role == "prefill":
        what = f"{kind.name} prompts for {fullness:.0%} of its time"
        return what if fullness > BUSY else f"nothing: {what}"
    what = f"{kind.name}: {share.sequences:.1f} of {kind.slots} places are taken on average"
    reading = f"; prompts take {share.reading:.0%} of its time" if share.reading > 0.05 else ""
    return f"{what}{reading}; {kind.bound}" if fullness > BUSY else f"nothing: {what}"


def _fullness(kind: Kind, share: Share) -> float:
    """Share of what an instance can do that is used."""
    return share.busy if kind.role == "prefill" else share.sequences / kind.slots


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
    fleet = most(problem, LOOK_S).fleet
    rate = rate_of(fleet, problem)
    found = [f"a rate of {rate:.3g} requests/s"] if rate else []
    for chip in problem.counts:
        if number := _more(problem, chip):
            found.append(f"{number} more {chip}")
    return found + _bearable(fleet, problem)


def _more(problem: Problem, chip: str) -> int | None:
    """Chips more that would do."""
    if not any(kind.row.chip == chip for kind in (*problem.kinds, *problem.split)):
        return None

    def enough(number: int) -> bool:
        more = replace(problem, counts={**problem.counts, chip: problem.counts[chip] + number})
        if not more.split and POOLED * take_alone(whole(more), more) < problem.rate_per_s:
            return False
        return most(more, LOOK_S).outcome.good_share >= problem.targets.share

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
    answers = forecast([kind.member for kind in members_of(fleet)], draw(problem.traffic), inf, problem.passing).answers
    firsts = percentile(sorted(answer.first_token_s for answer in answers), targets.share)
    betweens = percentile(sorted(answer.per_token_s for answer in answers), targets.share)
    given = {"first_token_s": (targets.first_token_s, firsts), "per_token_s": (targets.per_token_s, betweens)}
    needed = [f"{name} {value:.3g}" for name, (target, value) in given.items() if target and value > target]
    far = any(target and value > BEARABLE * target for target, value in given.values())
    return [f"targets of {' and '.join(needed)}"] if needed and not far else []
