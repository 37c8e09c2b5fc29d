"""Families of layouts: what differs in the layers of the stages only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from flagvega.tune.candidates import Expected, Family, Sight, Single
from flagvega.tune.learn import Features, Model
from flagvega.tune.pool import Pool
from flagvega.tune.study import Trial
from flagvega.tune.training.features import correction, stage_features, step_features
from flagvega.tune.training.forecast import SLACK, Forecast, uncorrected
from flagvega.tune.training.layouts import Splits, list_splits
from flagvega.tune.training.question import Part, Question
from flagvega.tune.training.shape import Point, Shape, read_point, recompute_words, words_of


@dataclass(frozen=True)
class Layouts:
    """The splits of a shape."""

    part: Part
    shape: Shape
    splits: Splits

    def __len__(self) -> int:
        return len(self.splits)

    @cached_property
    def forecast(self) -> Forecast:
        """Of the part."""
        assert self.part.forecast is not None
        return self.part.forecast

    @cached_property
    def features(self) -> Features:
        """Of the step: the layers of the stages are not among them."""
        return step_features(self.part.settings, self.shape)

    @property
    def choices(self) -> set[tuple[str, str]]:
        """Settings, meshes and recompute."""
        found = {(name, str(value)) for name, value in self.part.settings}
        found |= {("mesh", words_of(mesh)) for mesh in self.shape.meshes}
        return found | {("recompute", recompute_words(self.shape.recompute))}

    def point(self, i: int) -> Point:
        """A layout."""
        return Point(self.part.settings, self.shape, tuple(int(layers) for layers in self.splits[i]))

    def position(self, record: Mapping[str, Any]) -> int | None:
        """Of the layout that a record is of."""
        if not record.get("shape"):
            return None
        point = read_point(record)
        if point.shape != self.shape or point.settings != self.part.settings:
            return None
        hits = np.flatnonzero((self.splits == np.array(point.split, dtype=np.int16)).all(axis=1))
        return int(hits[0]) if len(hits) else None

    def expect(self, model: Model) -> Expected:
        """By a bound."""
        times, shares = self.forecast.times(self.shape, self.splits, correction(model))
        low, _ = self.forecast.times(self.shape, self.splits, correction(model, 1.0))
        return Expected(times * self.part.scale, np.log(times / low), shares)

    def look(self, i: int, model: Model) -> Sight:
        """By the simulation that `action=estimate` runs."""
        outlook = self.forecast.look(self.shape, self.point(i).split)
        predicted_s, staged_s = (
            self.forecast.simulated_s(self.shape, outlook, its) * self.part.scale
            for its in (uncorrected, correction(model))
        )
        return Sight(predicted_s, staged_s, max(self.forecast.memory_shares(self.shape, outlook)))

    def teach(self, model: Model, i: int, trial: Trial) -> None:
        """First the stages' seconds, then what the step differs by when these are right."""
        assert trial.time_s is not None
        outlook = self.forecast.look(self.shape, self.point(i).split)
        step_s = trial.time_s / self.part.scale
        m = outlook.pipeline.num_micro_batches
        if len(trial.busy) == len(outlook.stages):
            heads = self.forecast.head_shares(self.shape, outlook)
            for mesh, stage, head, share in zip(
                self.shape.stage_meshes, outlook.stages, heads, trial.busy, strict=True
            ):
                features = stage_features(mesh, self.shape.samples / (mesh.dp or 1), head)
                model.learn_part(features, share * step_s, m * stage.time_s + stage.optimizer_s)
        model.learn_step(self.features, step_s, self.forecast.simulated_s(self.shape, outlook, correction(model)))


def families_of(question: Question) -> Iterator[Family]:
    """All candidates of a question."""
    for part in question.parts:
        if part.forecast is None:
            yield Single(part.settings, part)
        for shape in part.shapes:
            yield Layouts(part, shape, list_splits(question.space, shape, part.layers))


def pool_of(question: Question) -> Pool:
    """All candidates of a question; those that are not likely to fit are left out once they are predicted."""
    return Pool(list(families_of(question)), SLACK)
