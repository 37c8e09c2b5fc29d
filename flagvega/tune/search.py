"""In which order candidates are tried: guided by the model, as they are listed, or at random."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flagvega.tune.candidates import Family, Point, Seen
from flagvega.tune.learn import Model
from flagvega.tune.pool import Pool
from flagvega.tune.study import Trial

BOLDNESS = 1.0
"""Deviations by which an uncertain candidate is taken to be better than expected when the next one is chosen."""
DOUBT = 2.0
"""Deviations within which all that remain must be worse before the search ends."""
FAILURE = 1.0
"""Of a choice with which trials have only failed: added to the logarithm of its seconds for each of them."""
LOOKED_AT = 256
"""Candidates that are simulated at most to find the next one."""


class Order(Protocol):
    """Chooses the next candidate."""

    def next(self) -> Seen | None:
        """The candidate to try; None when none is left."""

    def learn(self, seen: Seen, trial: Trial) -> None:
        """What came out."""


class History(Protocol):
    """What trials say about candidates that have not been tried."""

    def add(self, seen: Seen, trial: Trial) -> None:
        """One more trial."""

    def reason(self, seen: Seen) -> str | None:
        """Why a candidate need not be tried, or None."""


class NoHistory:
    """Trials say nothing about others but their speed."""

    def add(self, seen: Seen, trial: Trial) -> None:
        """Nothing."""

    def reason(self, seen: Seen) -> str | None:
        """None."""
        return None


@dataclass
class Failures:
    """Which choices trials have failed with, and with which one has run."""

    failed: Counter[tuple[str, str]] = field(default_factory=Counter)
    ran: set[tuple[str, str]] = field(default_factory=set)

    def add(self, family: Family, is_good: bool) -> None:
        """One more trial."""
        if is_good:
            self.ran |= family.choices
        else:
            self.failed.update(family.choices)

    def penalty(self, family: Family) -> float:
        """Added to the logarithm of the seconds of what shares choices that have only failed."""
        if not self.failed:
            return 0.0
        return FAILURE * sum(self.failed[each] for each in family.choices if each not in self.ran)


@dataclass
class Guided:
    """Best by the model first; every trial corrects the model."""

    pool: Pool
    history: History
    model: Model = field(default_factory=Model)
    failures: Failures = field(default_factory=Failures)
    pruned: list[tuple[Point, str]] = field(default_factory=list)
    """By rules of history, with their reasons."""

    def __post_init__(self) -> None:
        self.pool.predict(self.model)

    def next(self) -> Seen | None:
        """The candidate that is best if all goes a little better than expected."""
        while True:
            best: Seen | None = None
            for index, bound_s in self.pool.ranked(self.model, BOLDNESS, LOOKED_AT):
                if best is not None and bound_s >= best.low_s:
                    break
                seen = self.pool.see(index, self.model, BOLDNESS)
                if best is None or seen.low_s < best.low_s:
                    best = seen
            if best is None:
                return None
            why = self.history.reason(best)
            self.pool.drop(best.index)
            if why is None:
                return best
            self.pruned.append((best.point, why))

    def bound_s(self) -> float:
        """What none of the rest is likely to undercut."""
        return self.pool.bound_s(self.model, DOUBT)

    def learn(self, seen: Seen, trial: Trial) -> None:
        """Correct the model by what was measured."""
        self.pool.drop(seen.index)
        self.history.add(seen, trial)
        self.failures.add(seen.family, trial.is_good)
        self.pool.penalize(self.failures.penalty)
        if trial.is_good:
            seen.family.teach(self.model, seen.position, trial)
            self.pool.predict(self.model)


@dataclass
class Listed:
    """All candidates in an order that trials do not change."""

    pool: Pool
    order: NDArray[np.int64]
    """Indexes of candidates."""
    model: Model = field(default_factory=Model)
    num_past: int = 0

    def next(self) -> Seen | None:
        """The next one."""
        while self.num_past < len(self.order):
            index = int(self.order[self.num_past])
            self.num_past += 1
            if self.pool.alive[index]:
                self.pool.drop(index)
                return self.pool.see(index, self.model, 0.0)
        return None

    def learn(self, seen: Seen, trial: Trial) -> None:
        """It has been tried."""
        self.pool.drop(seen.index)


def listed(pool: Pool, key: Callable[[Family], tuple[float, ...]] | None = None) -> Listed:
    """As written out, or sorted by a key of their families."""
    pool.predict(Model())
    indexes = np.flatnonzero(pool.alive)
    if key is not None:
        keys = [key(family) for family in pool.families]
        ranks = {each: i for i, each in enumerate(sorted(set(keys)))}
        rank_of = np.array([ranks[each] for each in keys])
        indexes = indexes[np.argsort(rank_of[pool.family_of[indexes]], kind="stable")]
    return Listed(pool, indexes)


def shuffled(pool: Pool, seed: int) -> Listed:
    """At random."""
    order = listed(pool)
    np.random.default_rng(seed).shuffle(order.order)
    return order


def replay(order: Order, pool: Pool, trials: Sequence[Trial], key_of: Callable[[Point], str]) -> int:
    """Let an order learn what a former search measured; how many trials are of this question."""
    num = 0
    for trial in trials:
        index = pool.find(trial.point)
        if index is not None and key_of(pool.point(index)[0]) == trial.key:
            order.learn(pool.see(index, Model(), 0.0), trial)
            num += 1
    return num
