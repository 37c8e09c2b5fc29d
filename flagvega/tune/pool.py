"""All candidates as arrays: counted, predicted, ranked, and taken out one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flagvega.tune.candidates import Family, Floats, Point, Seen
from flagvega.tune.learn import Model


class Pool:
    """What may be tried and has not been."""

    def __init__(self, families: Sequence[Family], most_memory: float = 1.0) -> None:
        self.families = tuple(families)
        self.most_memory = most_memory
        """Share of a device's memory that a candidate may be predicted to need."""
        sizes = [len(family) for family in families]
        self.family_of = np.repeat(np.arange(len(sizes)), sizes)
        """Of each candidate."""
        self._begins = np.concatenate([[0], np.cumsum(sizes, dtype=int)])
        self.num_legal = self.num_fitting = int(self._begins[-1])
        self.alive: NDArray[np.bool_] = np.ones(self.num_legal, dtype=bool)
        self.memory = np.zeros(self.num_legal)
        self.times = np.zeros(self.num_legal)
        self.part_deviations = np.zeros(self.num_legal)
        """Of the logarithm of a step, for what is not known about the seconds of its parts."""
        self.penalties = np.zeros(len(self.families))
        """Of each family: added to the logarithm of its seconds, for what has failed."""
        self._is_predicted = False

    def predict(self, model: Model) -> None:
        """Seconds of a step of every candidate, for the model as it is; whoever cannot fit is taken out at first."""
        for family, begin in zip(self.families, self._begins, strict=False):
            here, expected = slice(begin, begin + len(family)), family.expect(model)
            self.times[here], self.memory[here] = expected.times, expected.memory_shares
            self.part_deviations[here] = expected.deviations
        if not self._is_predicted:
            self._is_predicted = True
            self.alive &= self.memory <= self.most_memory
            self.num_fitting = self.num_alive

    def penalize(self, penalty: Callable[[Family], float]) -> None:
        """Put off what is likely to fail."""
        self.penalties = np.array([penalty(family) for family in self.families])

    @property
    def num_alive(self) -> int:
        """Candidates left."""
        return int(self.alive.sum())

    def drop(self, index: int) -> None:
        """It is not to be tried (again)."""
        self.alive[index] = False

    def point(self, index: int) -> tuple[Point, Any]:
        """A candidate by its index, and what it is started with."""
        family = self.families[self.family_of[index]]
        return family.point(self.position(index)), family.part

    def position(self, index: int) -> int:
        """Of a candidate in its family."""
        return int(index - self._begins[self.family_of[index]])

    def find(self, record: Mapping[str, Any]) -> int | None:
        """The index of the candidate that a record is of, if it is one."""
        for family, begin in zip(self.families, self._begins, strict=False):
            if (position := family.position(record)) is not None:
                return int(begin) + position
        return None

    def factors(self, model: Model) -> tuple[Floats, Floats]:
        """(logarithm of the correction, its deviation) of every candidate."""
        pairs = [model.step_factor(family.features) for family in self.families]
        means, deviations = np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])
        means += self.penalties
        return means[self.family_of], np.hypot(deviations[self.family_of], self.part_deviations)

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
        """A candidate with a closer look at it."""
        family, position = self.families[self.family_of[index]], self.position(index)
        sight, (mean, deviation) = family.look(position, model), model.step_factor(family.features)
        deviation = float(np.hypot(deviation, self.part_deviations[index]))
        corrected_s = sight.staged_s * float(np.exp(mean))
        low_s = corrected_s * float(np.exp(self.penalties[self.family_of[index]] - boldness * deviation))
        return Seen(index, position, family, sight.predicted_s, corrected_s, low_s, sight.memory_share)
