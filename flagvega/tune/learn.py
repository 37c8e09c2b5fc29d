"""What measurements say about predictions: factors per chip, degree and dimension, with how uncertain they are.

Two linear models of logarithms with normal priors around "the prediction is right": one of the seconds that a stage
computes (each trial measures every stage), one of what is then left of the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, log, log2, sqrt
from typing import Any

import numpy as np

from flagvega.layout.request import MeshRequest
from flagvega.tune.shape import Settings, Shape, recompute_words

Features = Mapping[tuple[Any, ...], float]

CHIP_SD, TP_SD, SAMPLES_SD, HEAD_SD, STAGE_NOISE = 0.5, 0.15, 0.15, 0.3, 0.05
STEP_SD, SHAPE_SD, SETTING_SD, STEP_NOISE = 0.2, 0.05, 0.1, 0.02
UNKNOWN_SD, CHOICE_SD = 5.0, 0.7
"""Of a step that nothing predicts, and of what a choice may change it by."""


@dataclass
class Ridge:
    """Bayesian linear regression over named features."""

    noise: float
    rows: list[tuple[Features, float]] = field(default_factory=list)
    priors: dict[tuple[Any, ...], float] = field(default_factory=dict)
    """Standard deviation of each feature's weight around 0."""

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
        return self.priors.get(name[:1], SHAPE_SD)


@dataclass
class Model:
    """The corrections."""

    stages: Ridge = field(default_factory=lambda: Ridge(
        STAGE_NOISE, priors={("chip",): CHIP_SD, ("tp",): TP_SD, ("samples",): SAMPLES_SD, ("head",): HEAD_SD}
    ))  # fmt: skip
    steps: Ridge = field(default_factory=lambda: Ridge(
        STEP_NOISE,
        priors={("step",): STEP_SD, ("unknown",): UNKNOWN_SD, ("setting",): SETTING_SD, ("choice",): CHOICE_SD},
    ))  # fmt: skip

    def stage_factor(self, mesh: MeshRequest, samples: float, head: float, boldness: float = 0.0) -> float:
        """By what the time of a mesh's stages is to be multiplied, less so many deviations."""
        mean, deviation = self.stages.predict(stage_features(mesh, samples, head))
        return exp(mean - boldness * deviation)

    def step_factor(self, features: Features) -> tuple[float, float]:
        """(logarithm of what the rest of the step is to be multiplied by, its standard deviation)."""
        return self.steps.predict(features)

    def learn_stages(self, shape: Shape, heads: Sequence[float], computed_s: Sequence[float],
                     predicted_s: Sequence[float]) -> None:  # fmt: skip
        """Seconds that each stage computed in a step, and what was predicted without any correction."""
        for mesh, head, measured, predicted in zip(shape.stage_meshes, heads, computed_s, predicted_s, strict=True):
            if measured > 0 and predicted > 0:
                self.stages.add(stage_features(mesh, shape.samples / (mesh.dp or 1), head), log(measured / predicted))

    def learn_step(self, features: Features, measured_s: float, predicted_s: float) -> None:
        """Seconds of a step, and what was predicted with the stages' corrections."""
        self.steps.add(features, log(measured_s / predicted_s))


def stage_features(mesh: MeshRequest, samples: float, head: float) -> Features:
    """What the time of a stage may depend on beside its prediction; ``head`` is the share of it that is the head."""
    chip = str(mesh.chip)
    return {
        ("chip", chip): 1.0,
        ("tp", chip): log2(mesh.tp),
        ("samples", chip): log2(max(samples, 1e-9)),
        ("head", chip): head,
    }


def step_features(settings: Settings, shape: Shape | None) -> Features:
    """What the time of a step may depend on beside its prediction."""
    found: dict[tuple[Any, ...], float] = {("step",) if shape is not None else ("unknown",): 1.0}
    for name, value in settings:
        found["setting" if shape is not None else "choice", name, str(value)] = 1.0
    if shape is not None:
        found["stages",] = log2(len(shape.stage_meshes))
        found["samples",] = log2(shape.samples)
        found["recompute", recompute_words(shape.recompute)] = 1.0
        found["sharded", shape.distributed_optimizer] = 1.0
        if shape.virtual_stages > 1:
            found["virtual",] = log2(shape.virtual_stages)
    return found
