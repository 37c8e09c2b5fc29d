"""From the tokens of a load to the steps of the engine behind it: what a step costs by what is in it.

Every gap between two tokens of an answer is one step. A step's seconds are a line in the number of its sequences and in
the tokens of prompts that it reads; sums over all gaps of a trial are enough to fit it, also together with others.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from flagvega.serve.traffic import Answered

Vector = NDArray[np.float64]
TYPICAL = (0.03, 0.0005, 0.0001)
"""Seconds of a step, of each sequence and of each token of prompts in it, where nothing is known."""
PRIOR_SD = 2.0
"""Of these, as a share of them."""
NOISE = 0.1
"""Of a gap, as a share of it."""
ALIKE = 50.0
"""Gaps that tell as much as one: those of a step are the same measurement, and neighbours are much alike."""


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


def sum_steps(answers: Sequence[Answered], num_instances: int = 1) -> StepSums:
    """The sums of a load on so many instances alike, which are taken to share it evenly."""
    done = [answer for answer in answers if not answer.error and answer.gaps_s]
    if not done:
        return StepSums()
    firsts = sorted((each.begun_s + each.first_token_s, each.input_tokens) for each in done)
    starts, ends = [at for at, _ in firsts], sorted(each.begun_s + each.took_s for each in done)
    tokens = [0, *accumulate(num for _, num in firsts)]
    rows, gaps = [], []
    for each in done:
        at = each.begun_s + each.first_token_s
        for gap in each.gaps_s:
            if gap > 0:
                middle = at + gap / 2
                active = bisect_right(starts, middle) - bisect_right(ends, middle)
                # Of prompts whose first token came with the token at the end of this gap.
                read = tokens[bisect_right(starts, middle + gap)] - tokens[bisect_right(starts, middle)]
                rows.append((1.0, max(1.0, active / num_instances), read / num_instances))
                gaps.append(gap)
            at += gap
    if not rows:
        return StepSums()
    y = np.array(gaps)
    # Tokens that a busy host handed out together have gaps of nearly nothing, which must not count for much.
    weights = 1 / np.maximum(y, np.median(y))
    x = np.array(rows) * weights[:, None]
    xx, xy = x.T @ x, x.T @ (y * weights)
    return StepSums(tuple(tuple(map(float, row)) for row in xx), tuple(map(float, xy)), len(rows))


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
