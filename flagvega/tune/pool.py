"""All candidates of a question as arrays: counted, predicted, ranked, and taken out one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from flagvega.layout.request import MeshRequest
from flagvega.plan.explain import Outlook
from flagvega.tune.forecast import SLACK, Correction, Floats, uncorrected
from flagvega.tune.layouts import Splits, list_splits
from flagvega.tune.learn import Model, step_features
from flagvega.tune.question import Part, Question
from flagvega.tune.shape import Point, Settings, Shape


@dataclass(frozen=True)
class Row:
    """Candidates that differ in the layers of their stages only."""

    part: Part
    shape: Shape | None
    splits: Splits
    begin: int
    """Index of the first of them."""


@dataclass(frozen=True)
class Seen:
    """A candidate with what is expected of it."""

    index: int
    point: Point
    part: Part
    predicted_s: float | None
    corrected_s: float
    low_s: float
    """Optimistic."""
    memory_share: float | None


class Pool:
    """What may be tried and has not been."""

    def __init__(self, question: Question) -> None:
        self.rows: list[Row] = []
        begin = 0
        for part in question.parts:
            for shape in part.shapes or (None,):
                splits = np.zeros((1, 0), np.int16) if shape is None else list_splits(
                    question.space, shape, part.layers
                )  # fmt: skip
                self.rows.append(Row(part, shape, splits, begin))
                begin += len(splits)
        self.num_legal = begin
        self._row_of = np.repeat(np.arange(len(self.rows)), [len(row.splits) for row in self.rows])
        self.alive: NDArray[np.bool_] = np.ones(begin, dtype=bool)
        self.memory = np.zeros(begin)
        self.times = np.zeros(begin)
        self.stage_deviations = np.zeros(begin)
        """Of the logarithm of a step, for what is not known about the seconds of its stages."""
        self.penalties = np.zeros(len(self.rows))
        """Of each row: added to the logarithm of its seconds, for what has failed."""
        self._shares_known = False
        self.num_fitting = begin

    def predict(self, model: Model) -> None:
        """Seconds of a step of every candidate, for the model as it is; whoever cannot fit is taken out at first."""
        corrected, low = _factors(model, 0.0), _factors(model, 1.0)
        for row in self.rows:
            here = slice(row.begin, row.begin + len(row.splits))
            if row.shape is None or row.part.forecast is None:
                self.times[here] = 1.0
                continue
            self.times[here], self.memory[here] = row.part.forecast.times(row.shape, row.splits, corrected)
            low_s, _ = row.part.forecast.times(row.shape, row.splits, low)
            self.stage_deviations[here] = np.log(self.times[here] / low_s)
            self.times[here] *= row.part.scale
        self._corrected = corrected
        if not self._shares_known:
            self._shares_known = True
            self.alive &= self.memory <= SLACK
            self.num_fitting = int(self.alive.sum())

    def penalize(self, penalty: Callable[[Settings, Shape | None], float]) -> None:
        """Put off what is likely to fail."""
        self.penalties = np.array([penalty(row.part.settings, row.shape) for row in self.rows])

    @property
    def num_alive(self) -> int:
        """Candidates left."""
        return int(self.alive.sum())

    def drop(self, index: int) -> None:
        """It is not to be tried (again)."""
        self.alive[index] = False

    def point(self, index: int) -> tuple[Point, Part]:
        """A candidate by its index."""
        row = self.rows[int(self._row_of[index])]
        split = tuple(int(layers) for layers in row.splits[index - row.begin])
        return Point(row.part.settings, row.shape, split), row.part

    def find(self, point: Point) -> int | None:
        """The index of a candidate, if it is one."""
        for row in self.rows:
            if row.shape == point.shape and row.part.settings == point.settings:
                if row.shape is None:
                    return row.begin
                hits = np.flatnonzero((row.splits == np.array(point.split, dtype=np.int16)).all(axis=1))
                return row.begin + int(hits[0]) if len(hits) else None
        return None

    def factors(self, model: Model) -> tuple[Floats, Floats]:
        """(logarithm of the correction, its deviation) of every candidate."""
        pairs = [model.step_factor(step_features(row.part.settings, row.shape)) for row in self.rows]
        means, deviations = np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])
        means += self.penalties
        return means[self._row_of], np.hypot(deviations[self._row_of], self.stage_deviations)

    def ranked(self, model: Model, boldness: float, num: int) -> Iterator[tuple[int, float]]:
        """(index, seconds by the bound, optimistic by ``boldness`` deviations) of the best, first ones first."""
        means, deviations = self.factors(model)
        scores = np.where(self.alive, np.log(np.maximum(self.times, 1e-12)) + means - boldness * deviations, np.inf)
        num = min(num, len(scores))
        best = np.argpartition(scores, num - 1)[:num] if num else np.array([], dtype=int)
        for index in best[np.argsort(scores[best], kind="stable")]:
            if np.isfinite(scores[index]):
                yield int(index), float(np.exp(scores[index]))

    def bound_s(self, model: Model, boldness: float) -> float:
        """What none that is left is likely to undercut; infinite when none is left."""
        return next((seconds for _, seconds in self.ranked(model, boldness, 1)), float("inf"))

    def see(self, index: int, model: Model, boldness: float) -> Seen:
        """A candidate with its simulation."""
        point, part = self.point(index)
        mean, deviation = model.step_factor(step_features(part.settings, point.shape))
        if point.shape is None or part.forecast is None:
            typical = float(np.exp(mean))
            low = typical * float(np.exp(self.penalties[self._row_of[index]] - boldness * deviation))
            return Seen(index, point, part, None, typical, low, None)
        outlook = part.forecast.look(point.shape, point.split)
        staged_s = part.forecast.simulated_s(point.shape, outlook, self._corrected) * part.scale
        corrected_s = staged_s * float(np.exp(mean))
        penalty = float(np.exp(self.penalties[self._row_of[index]]))
        deviation = float(np.hypot(deviation, self.stage_deviations[index]))
        return Seen(
            index, point, part, plain_s(part, point, outlook), corrected_s,
            corrected_s * penalty * float(np.exp(-boldness * deviation)),
            max(part.forecast.memory_shares(point.shape, outlook)),
        )  # fmt: skip


def _factors(model: Model, boldness: float) -> Correction:
    """The corrections of stages, each worked out once."""

    @cache
    def factor(mesh: MeshRequest, samples: float, head: float) -> float:
        return model.stage_factor(mesh, samples, head, boldness)

    return factor


def plain_s(part: Part, point: Point, outlook: Outlook) -> float:
    """What the planner alone predicts: what `action=estimate` says of the plan."""
    assert point.shape is not None
    assert part.forecast is not None
    return part.forecast.simulated_s(point.shape, outlook, uncorrected) * part.scale
