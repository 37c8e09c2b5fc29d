"""Which instances to run for a traffic: how many of which form on which chips, and how many requests at once in each.

Forms are those that were measured. What a set of them makes of the traffic comes from :mod:`flagvega.serve.forecast`;
what one form can take alone says which sets are worth forecasting.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import inf
from typing import Final, Literal

from flagvega.serve.batching import Member
from flagvega.serve.curve import Curve, Row, curve_of
from flagvega.serve.forecast import Forecast, forecast
from flagvega.serve.traffic import Outcome, Request, Targets, Traffic, draw, judge

PATIENCE: Final = 0.6
"""Of the target for the first token: the gateway refuses what it expects to wait longer, for expectations err."""
PATIENCES: Final = (0.8, PATIENCE, 0.45, 0.3)
"""Those of which the best is taken for a set that is chosen."""
SAMPLE: Final = 400
"""Requests behind a first look at a form."""
REQUESTS: Final = 1200
"""Requests behind a forecast of a set, at least."""
SPANS: Final = 12
"""Times that a typical answer takes, for which requests are to come: the beginning of a forecast is idle."""
MOST_REQUESTS: Final = 12_000
HALVINGS: Final = 7
"""Of the interval in which a highest rate is looked for."""
WORTH: Final = 0.005
"""Share of the goodput that is given up for fewer devices."""
POOLED: Final = 1.25
"""Together, instances take at most about so much more than the sum of what each takes alone."""


@dataclass(frozen=True, eq=False)
class Kind:
    """An instance as it may be run: a measured form with a limit of requests at once."""

    row: Row
    slots: int
    rate_per_s: float
    """The highest rate at which it meets the targets alone."""
    price_per_hour: float
    bound: str
    """What keeps the slots from being more, in words."""

    @cached_property
    def curve(self) -> Curve:
        """Its steps."""
        return curve_of(self.row)

    @property
    def member(self) -> Member:
        """As a forecast takes it."""
        return Member(self.curve, self.slots)


Fleet = tuple[tuple[Kind, int], ...]
"""Kinds with their numbers of instances."""


@dataclass(frozen=True)
class Problem:
    """What is asked."""

    kinds: tuple[Kind, ...]
    """Those that meet the targets at some rate."""
    counts: Mapping[str, int]
    """Devices by chip."""
    traffic: Traffic
    targets: Targets
    objective: Literal["goodput", "cost"]

    @property
    def rate_per_s(self) -> float:
        """Of the traffic."""
        assert self.traffic.rate_per_s
        return self.traffic.rate_per_s


@dataclass(frozen=True)
class Outlook:
    """A set of instances, and what is expected of it."""

    fleet: Fleet
    forecast: Forecast
    outcome: Outcome
    patience_s: float
    """The gateway refuses what it expects to wait longer for its first token."""

    @property
    def members(self) -> list[Kind]:
        """A kind for each instance, in the order of the forecast."""
        return list(members_of(self.fleet))

    @property
    def price_per_hour(self) -> float:
        """Of all its devices."""
        return price_of(self.fleet)

    @property
    def num_devices(self) -> int:
        """Of all its instances."""
        return sum(kind.row.num_devices * number for kind, number in self.fleet)


def patience_of(targets: Targets, share: float = PATIENCE) -> float:
    """The gateway's limit for a first token, as a share of the target."""
    return inf if targets.first_token_s is None else round(share * targets.first_token_s, 4)


def members_of(fleet: Fleet) -> Iterator[Kind]:
    """A kind for each instance."""
    for kind, number in fleet:
        yield from [kind] * number


def price_of(fleet: Fleet) -> float:
    """Per hour."""
    return sum(kind.price_per_hour * number for kind, number in fleet)


# ---- one form alone ----


def find_kind(row: Row, traffic: Traffic, targets: Targets, price_per_hour: float) -> Kind | None:
    """The form with the limit of requests at once at which it takes most; None where it never meets the targets."""
    curve = curve_of(row)
    most = row.levels[-1].sequences
    if row.cache_tokens is not None:
        most = max(1, min(most, round(row.cache_tokens / (traffic.input_tokens.mean + traffic.output_tokens.mean))))
    tried = sorted(
        {max(1, round(share * most)) for share in (1, 0.75, 0.5, 0.375, 0.25, 0.125)}
        | {1, *_fitting(curve, most, targets)}
    )
    best: Kind | None = None
    for slots in reversed(tried):
        rate = highest_rate(
            [Member(curve, slots)], traffic, targets, start=_ceiling(curve, slots, traffic), least=SAMPLE
        )
        if best is None or rate > best.rate_per_s * (1 + WORTH):
            best = Kind(row, slots, rate, price_per_hour, _bound(slots, row, most))
    return best if best and best.rate_per_s > 0 else None


def _fitting(curve: Curve, most: int, targets: Targets) -> list[int]:
    """The most sequences whose steps alone keep the target between tokens, and some fewer: prompts come in between."""
    if targets.per_token_s is None:
        return []
    fit = max((n for n in range(1, most + 1) if curve.step_s(n) <= targets.per_token_s), default=0)
    return sorted({max(1, round(share * fit)) for share in (1, 0.9, 0.8, 0.65)}) if fit else []


def _bound(slots: int, row: Row, most: int) -> str:
    if slots < most:
        return "more at once would be too slow"
    return (
        "more were not measured, or gained nothing" if most == row.levels[-1].sequences else "its cache holds no more"
    )


def _ceiling(curve: Curve, slots: int, traffic: Traffic) -> float:
    """Requests a second beyond which no instance goes: slots always full, prompts read in between."""
    output, given = traffic.output_tokens.mean, traffic.input_tokens.mean
    return 1 / (given * curve.prompt_token_s + output * curve.step_s(slots) / slots)


def highest_rate(
    members: Sequence[Member], traffic: Traffic, targets: Targets, start: float, least: int = REQUESTS
) -> float:
    """The most requests a second of which so many as the targets say meet them; 0 where they never do.

    ``start`` is a rate above which it is not, ``least`` a number of requests to look at.
    """
    number = sample_size(members, traffic, start, least)
    base = draw(replace(traffic, rate_per_s=1.0, num_requests=number))
    low, high = 0.0, start
    for _ in range(HALVINGS):
        rate = (low + high) / 2
        if _share(members, base, rate, targets) >= targets.share:
            low = rate
        else:
            high = rate
    return low


def sample_size(members: Sequence[Member], traffic: Traffic, rate_per_s: float, least: int = REQUESTS) -> int:
    """Requests to look at, for a forecast that is long past its idle beginning."""
    answer_s = max(traffic.output_tokens.mean * member.curve.step_s(member.slots) for member in members)
    return round(min(max(least, SPANS * rate_per_s * answer_s), MOST_REQUESTS))


def _share(members: Sequence[Member], base: Sequence[Request], rate: float, targets: Targets) -> float:
    """Of requests at this rate, those that meet the targets; ``base`` are requests at one a second."""
    requests = [replace(each, at_s=each.at_s / rate) for each in base]
    answers = forecast(members, requests, patience_of(targets)).answers
    return sum(answer.meets(targets) for answer in answers) / len(answers)


# ---- sets ----


def look(fleet: Fleet, problem: Problem, patience: float = PATIENCE) -> Outlook:
    """What is expected of a set of instances."""
    members, traffic = [kind.member for kind in members_of(fleet)], problem.traffic
    number = max(sample_size(members, traffic, problem.rate_per_s), traffic.num_requests)
    requests, patience_s = draw(replace(traffic, num_requests=number)), patience_of(problem.targets, patience)
    found = forecast(members, requests, patience_s)
    outcome = judge(traffic, requests, found.answers, problem.targets, found.duration_s)
    return Outlook(fleet, found, outcome, patience_s)


def choose(problem: Problem, time_s: float) -> Outlook:
    """The best set: of most goodput, with no device that adds next to nothing; or the cheapest that holds the targets.

    Where no set holds the targets, it is the one of most goodput.
    """
    deadline = time.monotonic() + time_s
    best = look(whole(problem), problem)
    if problem.objective == "cost":
        best = _cheapest(problem, best, deadline)
    best = _trim(best, problem, deadline)
    limits = [look(best.fleet, problem, patience) for patience in PATIENCES]
    least = _least(max(outlook.outcome.good_share for outlook in limits), problem)
    return next(outlook for outlook in limits if outlook.outcome.good_share >= least)


def _least(share: float, problem: Problem) -> float:
    """Next to nothing less than this share of good requests, but not below what the targets ask for."""
    return min(share, max((1 - WORTH) * share, problem.targets.share))


def holds(outlook: Outlook, problem: Problem) -> bool:
    """Whether so many requests as wanted meet the targets."""
    return outlook.outcome.good_share >= problem.targets.share


def whole(problem: Problem) -> Fleet:
    """All devices in use, those of each chip so that they take most."""
    return merge(pack(problem.kinds, chip, count)[count] for chip, count in problem.counts.items())


def pack(kinds: Sequence[Kind], chip: str, count: int) -> list[Fleet]:
    """For 0, 1, 2 ... ``count`` devices of a chip: the instances on them that take most."""
    own = [kind for kind in kinds if kind.row.chip == chip]
    best: list[tuple[float, Counter[Kind]]] = [(0.0, Counter())]
    for number in range(1, count + 1):
        found = best[number - 1]
        for kind in own:
            if (size := kind.row.num_devices) <= number:
                rate, inside = best[number - size]
                if rate + kind.rate_per_s > found[0] + 1e-9:
                    found = rate + kind.rate_per_s, inside + Counter([kind])
        best.append(found)
    return [tuple(inside.items()) for _, inside in best]


def merge(parts: Iterable[Fleet]) -> Fleet:
    """All of them together."""
    return tuple(pair for part in parts for pair in part)


def take_alone(fleet: Fleet) -> float:
    """The sum of what its instances take alone, in requests a second."""
    return sum(kind.rate_per_s * number for kind, number in fleet)


def _cheapest(problem: Problem, best: Outlook, deadline: float) -> Outlook:
    """Sets by rising price, until one holds; those that cannot are passed over."""
    packs = [pack(problem.kinds, chip, count) for chip, count in problem.counts.items()]
    sets = {merge(parts) for parts in product(*packs)}
    worth = [fleet for fleet in sets if fleet and POOLED * take_alone(fleet) >= problem.rate_per_s]
    for fleet in sorted(worth, key=lambda fleet: (price_of(fleet), -take_alone(fleet))):
        if time.monotonic() > deadline or (holds(best, problem) and price_of(fleet) >= best.price_per_hour):
            break
        outlook = look(fleet, problem)
        if holds(outlook, problem):
            return outlook
    return best


def _trim(best: Outlook, problem: Problem, deadline: float) -> Outlook:
    """Without the instances that add next to nothing, the dearest first."""
    least = _least(best.outcome.good_share, problem)
    trying = True
    while trying and time.monotonic() < deadline:
        trying = False
        for kind, _ in sorted(
            best.fleet, key=lambda pair: (-pair[0].price_per_hour, -pair[0].row.num_devices, pair[0].rate_per_s)
        ):
            fewer = tuple((each, number - (each is kind)) for each, number in best.fleet)
            outlook = look(fleet, problem) if (fleet := tuple(pair for pair in fewer if pair[1])) else None
            if outlook and outlook.outcome.good_share >= least:
                best, trying = outlook, True
                break
    return best
