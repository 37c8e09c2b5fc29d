"""Sets of instances: what is asked of them, what is expected of one, and which take most of each chip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final, Literal

from flagvega.config.spec import Role
from flagvega.serve.curve import Passing, Row
from flagvega.serve.forecast import AT_ONCE, Forecast, forecast
from flagvega.serve.kinds import PATIENCE, Kind, patience_of, sample_size
from flagvega.serve.traffic import Outcome, Targets, Traffic, draw, judge

POOLED: Final = 1.25
"""Together, instances take at most about so much more than the sum of what each takes alone."""

PARTS: Final[tuple[Role, ...]] = ("prefill", "decode")

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
    split: tuple[Kind, ...] = ()
    """Those that only read prompts or only write answers; none where no prompt can be handed over."""
    passing: Passing = AT_ONCE
    """What handing over takes."""
    apart: frozenset[frozenset[str]] = frozenset()
    """Names of forms that cannot hand over to each other, or to their like."""

    @property
    def rate_per_s(self) -> float:
        """Of the traffic."""
        assert self.traffic.rate_per_s
        return self.traffic.rate_per_s

    def usable(self, chip: str) -> Sequence[Kind]:
        """The kinds that do whole requests on a chip; where none does, those that do a part of them."""
        own, parts = ([kind for kind in kinds if kind.row.chip == chip] for kinds in (self.kinds, self.split))
        return own or [kind for kind in parts if kind.role == "prefill"] or parts

    def find(self, row: Row, role: Role) -> Kind | None:
        """The kind of a form that does such a part of requests."""
        return next((kind for kind in (*self.kinds, *self.split) if kind.row is row and kind.role == role), None)


@dataclass(frozen=True)
class Outlook:
    """A set of instances, and what is expected of it."""

    fleet: Fleet
    forecast: Forecast
    outcome: Outcome
    patience_s: float
    """The gateway refuses what it expects to wait longer for its first token."""
    other: Outlook | None = None
    """The best with roles, where it has none; the best without, where it has some; None where there is no such."""

    @property
    def members(self) -> list[Kind]:
        """A kind for each instance, in the order of the forecast."""
        return list(members_of(self.fleet))

    @property
    def has_roles(self) -> bool:
        """Whether requests are shared by readers and writers."""
        return has_roles(self.fleet)

    @property
    def price_per_hour(self) -> float:
        """Of all its devices."""
        return price_of(self.fleet)


def members_of(fleet: Fleet) -> Iterator[Kind]:
    """A kind for each instance."""
    for kind, number in fleet:
        yield from [kind] * number


def devices_of(fleet: Fleet) -> Counter[str]:
    """By chip."""
    used = Counter[str]()
    for kind, number in fleet:
        used[kind.row.chip] += kind.row.num_devices * number
    return used


def price_of(fleet: Fleet) -> float:
    """Per hour."""
    return sum(kind.price_per_hour * number for kind, number in fleet)


def has_roles(fleet: Fleet) -> bool:
    """Whether requests are shared by readers and writers."""
    return any(kind.role != "both" for kind, _ in fleet)


def look(fleet: Fleet, problem: Problem, patience: float = PATIENCE) -> Outlook:
    """What is expected of a set of instances."""
    members, traffic = [kind.member for kind in members_of(fleet)], problem.traffic
    number = max(sample_size(members, traffic, problem.rate_per_s), traffic.num_requests)
    requests, patience_s = draw(replace(traffic, num_requests=number)), patience_of(problem.targets, patience)
    found = forecast(members, requests, patience_s, problem.passing)
    outcome = judge(traffic, requests, found.answers, problem.targets, found.duration_s)
    return Outlook(fleet, found, outcome, patience_s)


def holds(outlook: Outlook, problem: Problem) -> bool:
    """Whether so many requests as wanted meet the targets."""
    return outlook.outcome.good_share >= problem.targets.share


def works(fleet: Fleet, problem: Problem) -> bool:
    """Whether there is an instance, and who reads has who writes, and the other way round, and they understand."""
    if not fleet or not has_roles(fleet):
        return bool(fleet)
    if len({kind.role for kind, _ in fleet}) == 1:
        return False
    names = [kind.row.name for kind, number in fleet for _ in range(min(number, 2))]
    return not any(frozenset(pair) in problem.apart for pair in combinations(names, 2))


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


def take_alone(fleet: Fleet, problem: Problem) -> float:
    """The sum of what its instances take alone, in requests a second; with roles, more than they take together."""
    if not has_roles(fleet):
        return sum(kind.rate_per_s * number for kind, number in fleet)
    return min(
        sum(_part(problem, kind.row, role) * number for kind, number in fleet if kind.role in (role, "both"))
        for role in PARTS
    )


def _part(problem: Problem, row: Row, role: Role) -> float:
    kind = problem.find(row, role)
    return kind.rate_per_s if kind else 0.0


def add(fleet: Fleet, changes: Mapping[Kind, int]) -> Fleet:
    """With so many more of some kinds, or fewer."""
    counts = Counter(dict(fleet))
    counts.update(changes)
    return tuple((kind, number) for kind, number in counts.items() if number)
