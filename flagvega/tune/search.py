"""In which order candidates are tried: guided by the model, in FlagScale's order, at random, or by Optuna."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from flagvega.tune.learn import Model, step_features
from flagvega.tune.needs import Need, needs_of
from flagvega.tune.pool import Pool, Seen
from flagvega.tune.question import Part
from flagvega.tune.rules import memory, time
from flagvega.tune.shape import Point, Settings, Shape, recompute_words, words_of
from flagvega.tune.study import Trial, decode

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


@dataclass
class History:
    """What trials say about candidates that have not been tried."""

    failed: list[tuple[int, Need, tuple[object, ...]]] = field(default_factory=list)
    """(trial, the stage that ran out of memory, settings)."""
    ran: list[tuple[int, Point, tuple[Need, ...]]] = field(default_factory=list)

    def add(self, point: Point, part: Part, trial: Trial) -> None:
        """One more trial."""
        if point.shape is None or part.forecast is None:
            return
        needs = needs_of(point, part.forecast)
        if trial.is_good:
            self.ran.append((trial.number, point, needs))
        elif trial.status == "oom" and trial.rank is not None:
            self.failed.append((trial.number, needs[_stage_of(point, trial.rank)], point.settings))

    def reason(self, point: Point, part: Part) -> str | None:
        """Why a candidate need not be tried, or None."""
        if point.shape is None or part.forecast is None or not (self.failed or self.ran):
            return None
        needs = needs_of(point, part.forecast)
        for number, need, settings in self.failed:
            if settings == point.settings and (why := memory.check(needs, need)):
                return f"{why} (trial {number})"
        for number, tried, its in self.ran:
            if why := time.check(point, needs, tried, its):
                return f"{why} (trial {number})"
        return None


def _stage_of(point: Point, rank: int) -> int:
    """The stage that a rank of the plan belongs to: ranks go through stages in order."""
    assert point.shape is not None
    for i, mesh in enumerate(point.shape.stage_meshes):
        rank -= mesh.tp * mesh.cp * (mesh.dp or 1)
        if rank < 0:
            return i
    raise AssertionError("no such rank")


@dataclass
class Failures:
    """Which choices trials have failed with, and with which one has run."""

    failed: Counter[tuple[str, str]] = field(default_factory=Counter)
    ran: set[tuple[str, str]] = field(default_factory=set)

    def add(self, point: Point, is_good: bool) -> None:
        """One more trial."""
        choices = _choices(point.settings, point.shape)
        if is_good:
            self.ran |= choices
        else:
            self.failed.update(choices)

    def penalty(self, settings: Settings, shape: Shape | None) -> float:
        """Added to the logarithm of the seconds of what shares choices that have only failed."""
        if not self.failed:
            return 0.0
        return FAILURE * sum(self.failed[each] for each in _choices(settings, shape) if each not in self.ran)


def _choices(settings: Settings, shape: Shape | None) -> set[tuple[str, str]]:
    found = {(name, str(value)) for name, value in settings}
    if shape is not None:
        found |= {("mesh", words_of(mesh)) for mesh in shape.meshes}
        found.add(("recompute", recompute_words(shape.recompute)))
    return found


@dataclass
class Guided:
    """Best by the model first; every trial corrects the model."""

    pool: Pool
    model: Model = field(default_factory=Model)
    history: History = field(default_factory=History)
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
            why = self.history.reason(best.point, best.part)
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
        self.history.add(seen.point, seen.part, trial)
        self.failures.add(seen.point, trial.is_good)
        self.pool.penalize(self.failures.penalty)
        if trial.is_good:
            teach(self.model, seen, trial)
            self.pool.predict(self.model)


def teach(model: Model, seen: Seen, trial: Trial) -> None:
    """First the stages' seconds, then what the step differs by when these are right."""
    point, forecast = seen.point, seen.part.forecast
    assert trial.time_s is not None
    features = step_features(point.settings, point.shape)
    if point.shape is None or forecast is None:
        model.learn_step(features, trial.time_s, 1.0)
        return
    outlook = forecast.look(point.shape, point.split)
    step_s = trial.time_s / seen.part.scale
    m = outlook.pipeline.num_micro_batches
    if len(trial.busy) == len(outlook.stages):
        predicted = [m * stage.time_s + stage.optimizer_s for stage in outlook.stages]
        heads = forecast.head_shares(point.shape, outlook)
        model.learn_stages(point.shape, heads, [share * step_s for share in trial.busy], predicted)
    staged_s = forecast.simulated_s(point.shape, outlook, model.stage_factor)
    model.learn_step(features, step_s, staged_s)


@dataclass
class Listed:
    """All candidates in an order that trials do not change."""

    pool: Pool
    order: list[int]
    model: Model = field(default_factory=Model)

    def next(self) -> Seen | None:
        """The next one."""
        while self.order:
            index = self.order.pop(0)
            if self.pool.alive[index]:
                self.pool.drop(index)
                return self.pool.see(index, self.model, 0.0)
        return None

    def learn(self, seen: Seen, trial: Trial) -> None:
        """It has been tried."""
        self.pool.drop(seen.index)


def grid(pool: Pool, priority: str | None) -> Listed:
    """FlagScale's order: as written out, or sorted by its keys for memory or performance."""
    pool.predict(Model())
    indexes = [int(index) for index in np.flatnonzero(pool.alive)]
    if priority is not None:
        key = _by_memory if priority == "memory" else _by_performance
        indexes.sort(key=lambda index: key(pool.point(index)[0]))
    return Listed(pool, indexes)


def shuffled(pool: Pool, seed: int) -> Listed:
    """At random."""
    pool.predict(Model())
    indexes = [int(index) for index in np.flatnonzero(pool.alive)]
    random.Random(seed).shuffle(indexes)
    return Listed(pool, indexes)


def _by_memory(point: Point) -> tuple[float, ...]:
    """What needs least first: with recompute, large tp, sequences cut, small micro-batches, large pp, small dp."""
    if point.shape is None:
        return ()
    return (*_common(point.shape), point.shape.meshes[0].dp or 1, -point.shape.distributed_optimizer)


def _by_performance(point: Point) -> tuple[float, ...]:
    """FlagScale's guess at speed: no recompute, then as for memory, but large dp and few layers computed again."""
    if point.shape is None:
        return ()
    recomputes, *common = _common(point.shape)
    depth = max((part.num_layers or 0 for part in point.shape.recompute or ()), default=0)
    return (-recomputes, *common, -(point.shape.meshes[0].dp or 1), depth)


def _common(shape: Shape) -> tuple[float, ...]:
    """The keys that both orders have; of several meshes the largest tp and all stages count."""
    recomputes = bool(shape.recompute and shape.recompute[0].granularity)
    meshes = shape.meshes
    return (
        -recomputes, -max(mesh.tp for mesh in meshes), -any(mesh.sp for mesh in meshes), shape.micro_batch_size,
        -sum(mesh.pp for mesh in meshes),
    )  # fmt: skip


def replay(order: Order, pool: Pool, trials: Sequence[Trial], key_of: Callable[[Point], str]) -> int:
    """Let an order learn what a former search measured; how many trials are of this question."""
    num = 0
    for trial in trials:
        point = decode(trial.point)
        index = pool.find(point)
        if index is not None and key_of(point) == trial.key:
            order.learn(pool.see(index, Model(), 0.0), trial)
            num += 1
    return num
