"""From the steps of an engine to what a step costs by what is in it.

A step's seconds are a line in the number of its sequences and in the tokens of prompts that it reads; sums over all
gaps between tokens are enough to fit it, also together with those of other trials.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flagvega.serve.curve import DEFAULT_SLOTS, DEFAULT_STEP_TOKENS
from flagvega.serve.traffic import Answered
from flagvega.serve.tuning.timeline import read_steps

Vector = NDArray[np.float64]
TYPICAL = (0.03, 0.0005, 0.0001)
"""Seconds of a step, of each sequence and of each token of prompts in it, where nothing is known."""
PRIOR_SD = 2.0
"""Of these, as a share of them."""
NOISE = 0.1
"""Of a gap, as a share of it."""
ALIKE = 50.0
"""Gaps that tell as much as one: those of a step are the same measurement, and neighbours are much alike."""

PASSES = 4
"""Over the gaps of a load, each with less weight to those that are far off: the host was busy, or a network."""
FAR = 3.0
"""Times what is usual."""
TINY = 1e-6


@dataclass(frozen=True)
class StepSums:
    """Normal equations of relative errors; they add up."""

    xx: tuple[tuple[float, ...], ...] = ((0.0,) * 3,) * 3
    xy: tuple[float, ...] = (0.0,) * 3
    num: int = 0
    """Gaps."""

    def __add__(self, other: StepSums) -> StepSums:
        xx = tuple(tuple(map(sum, zip(a, b, strict=True))) for a, b in zip(self.xx, other.xx, strict=True))
        return StepSums(xx, tuple(map(sum, zip(self.xy, other.xy, strict=True))), self.num + other.num)


def sum_steps(
    answers: Sequence[Answered], step_tokens: int = DEFAULT_STEP_TOKENS, slots: int = DEFAULT_SLOTS
) -> StepSums:
    """The sums of what one instance answered, which takes in so many tokens a step and sequences at once."""
    steps, gaps = read_steps(answers, step_tokens, slots)
    rows = [
        (float(last - first), *(float(sum(part)) for part in zip(*steps[first + 1 : last + 1], strict=True)))
        for first, last, _ in gaps
    ]
    if not rows:
        return StepSums()
    x, y = np.array(rows), np.array([gap for _, _, gap in gaps])
    # Tokens that a busy host handed out together have gaps of nearly nothing, which must not count for much.
    shares = 1 / np.maximum(y, np.median(y))
    weights = np.ones_like(y)
    for _ in range(PASSES):
        sums = _sum(x, y, shares * np.sqrt(weights))
        away = np.abs(y - x @ fit_steps(sums)) * shares
        weights = 1 / np.maximum(1, away / (FAR * np.median(away) + TINY))
    return _sum(x, y, shares * np.sqrt(weights))


def _sum(x: Vector, y: Vector, weights: Vector) -> StepSums:
    x = x * weights[:, None]
    xx, xy = x.T @ x, x.T @ (y * weights)
    return StepSums(tuple(tuple(map(float, row)) for row in xx), tuple(map(float, xy)), len(y))


def fit_steps(sums: StepSums) -> tuple[float, float, float]:
    """(seconds of a step, of each sequence, of each token of prompts), none below 0; typical ones without data."""
    scale, weight = np.array(TYPICAL), 1.0 / (ALIKE * NOISE**2)
    matrix = _precision(sums)
    vector = np.array(sums.xy) * scale * weight + 1.0 / PRIOR_SD**2
    kept = [0, 1, 2]
    found: Vector = np.zeros(3)
    while kept:
        solved = np.linalg.solve(matrix[np.ix_(kept, kept)], vector[kept])
        if (solved >= 0).all():
            found[kept] = solved
            break
        kept = [index for index, value in zip(kept, solved, strict=True) if value >= 0]
    base, sequence, prompt = (float(value) for value in found * scale)
    return base, sequence, prompt


def doubt(sums: StepSums, sequences: float) -> float:
    """Deviation of the seconds of a step with so many sequences, as a share of them: little where it was seen."""
    x = np.array((1.0, sequences, 0.0)) * TYPICAL
    base, sequence, _ = fit_steps(sums)
    return float(np.sqrt(x @ np.linalg.inv(_precision(sums)) @ x)) / (base + sequence * sequences)


def _precision(sums: StepSums) -> Vector:
    """Of the three, each in units of what is typical."""
    scale = np.array(TYPICAL)
    found: Vector = np.array(sums.xx) * np.outer(scale, scale) / (ALIKE * NOISE**2) + np.eye(3) / PRIOR_SD**2
    return found
