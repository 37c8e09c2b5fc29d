"""What measurements say about predictions: factors by features of a candidate, with how uncertain they are.

Two linear models of logarithms with normal priors around "the prediction is right": one of the seconds of a part (of a
layout the stages: each trial measures every stage), one of what is then left of the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import exp, log, sqrt
from typing import Any

import numpy as np

Features = Mapping[tuple[Any, ...], float]
"""By name; the first word of a name is the kind of the feature."""

PART_SD: Mapping[str, float] = {"chip": 0.5, "tp": 0.15, "samples": 0.15, "head": 0.3}
"""By the kind of a feature: what a part may differ by from its prediction, as a deviation of the logarithm."""
STEP_SD: Mapping[str, float] = {"step": 0.2, "setting": 0.1, "unknown": 5.0, "choice": 0.7}
"""The same of the step; ``unknown``: one that nothing predicts, ``choice``: what a setting may change it by then."""
OTHER_SD = 0.05
PART_NOISE, STEP_NOISE = 0.05, 0.02
"""Of a measurement."""


@dataclass
class Ridge:
    """Bayesian linear regression over named features."""

    noise: float
    priors: Mapping[str, float]
    """Standard deviation of a feature's weight around 0, by its kind."""
    rows: list[tuple[Features, float]] = field(default_factory=list)

    def add(self, features: Features, value: float) -> None:
        """One measurement."""
        self.rows.append((features, value))
        self._solved: tuple[dict[tuple[Any, ...], int], Any, Any] | None = None

    def predict(self, features: Features) -> tuple[float, float]:
        """(mean, standard deviation) of the value at some features, without the noise of a measurement."""
        if not self.rows:
            return 0.0, sqrt(sum((self._prior(name) * x) ** 2 for name, x in features.items()))
        index, mean, cov = self._solve()
        x = np.zeros(len(mean))
        unseen = 0.0
        for name, value in features.items():
            if name in index:
                x[index[name]] = value
            else:
                unseen += (self._prior(name) * value) ** 2
        return float(x @ mean), sqrt(max(0.0, float(x @ cov @ x)) + unseen)

    def _solve(self) -> tuple[dict[tuple[Any, ...], int], Any, Any]:
        if self._solved is None:
            names = list(dict.fromkeys(name for features, _ in self.rows for name in features))
            index = {name: i for i, name in enumerate(names)}
            matrix = np.zeros((len(self.rows), len(names)))
            for i, (features, _) in enumerate(self.rows):
                for name, value in features.items():
                    matrix[i, index[name]] = value
            values = np.array([value for _, value in self.rows])
            precision = matrix.T @ matrix / self.noise**2 + np.diag([self._prior(name) ** -2 for name in names])
            cov = np.linalg.inv(precision)
            self._solved = index, cov @ matrix.T @ values / self.noise**2, cov
        return self._solved

    def _prior(self, name: tuple[Any, ...]) -> float:
        return self.priors.get(name[0], OTHER_SD)


@dataclass
class Model:
    """The corrections."""

    parts: Ridge = field(default_factory=lambda: Ridge(PART_NOISE, PART_SD))
    steps: Ridge = field(default_factory=lambda: Ridge(STEP_NOISE, STEP_SD))

    def part_factor(self, features: Features, boldness: float = 0.0) -> float:
        """By what the time of a part is to be multiplied, less so many deviations."""
        mean, deviation = self.parts.predict(features)
        return exp(mean - boldness * deviation)

    def step_factor(self, features: Features) -> tuple[float, float]:
        """(logarithm of what the rest of the step is to be multiplied by, its standard deviation)."""
        return self.steps.predict(features)

    def learn_part(self, features: Features, measured_s: float, predicted_s: float) -> None:
        """Seconds that a part took in a step, and what was predicted without any correction."""
        if measured_s > 0 and predicted_s > 0:
            self.parts.add(features, log(measured_s / predicted_s))

    def learn_step(self, features: Features, measured_s: float, predicted_s: float) -> None:
        """Seconds of a step, and what was predicted with the parts' corrections."""
        self.steps.add(features, log(measured_s / predicted_s))
