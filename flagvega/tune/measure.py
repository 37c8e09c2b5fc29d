"""From the metrics of a trial to a number: typical step, confidence, and whether more steps would change anything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, Literal

T_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.18, 2.15, 2.13, 2.11, 2.10, 2.09, 2.08, 2.07,
        2.07, 2.06)  # fmt: skip
"""Student's t of 95 % by degrees of freedom from 1 on; further ones have the last."""
WORSE = 1.1
"""A trial whose confidence interval begins above so many times the best one's steps is clearly worse."""
FEW = 3
"""Steps that it takes to call a trial clearly worse."""

Judgement = Literal["more", "enough", "worse", "nan"]


@dataclass(frozen=True)
class Limits:
    """How long a trial goes on."""

    warmup_iters: int
    train_iters: int
    max_iters: int
    confidence: float
    max_time_s: float
    best_s: float | None = None
    """Seconds a step of the best trial so far."""


@dataclass(frozen=True)
class Measured:
    """The steps of a trial."""

    steps: tuple[float, ...]
    """Seconds of each measured step."""
    busy: tuple[float, ...] = ()
    """Share of the step in which each stage computes."""
    tokens_per_s: float = 0.0
    peak_bytes: tuple[float, ...] = ()
    """Most that a device of each stage has held, where its chip counts that."""
    loss: float | None = None
    is_finite: bool = True

    @property
    def typical_s(self) -> float:
        """Seconds a step: the median, so that a hiccup of the host does not count."""
        return median(self.steps)

    @property
    def half_width_s(self) -> float:
        """Of the 95 % confidence interval of the median; infinite with one step.

        From the median distance to the median, which is 0.6745 deviations where steps are normally distributed; the
        median of such is 1.2533 times as uncertain as their mean.
        """
        if len(self.steps) < 2:
            return math.inf
        t = T_95[min(len(self.steps) - 2, len(T_95) - 1)]
        deviation = median(abs(step - self.typical_s) for step in self.steps) / 0.6745
        return t * 1.2533 * deviation / math.sqrt(len(self.steps))


def read_steps(rows: Sequence[Mapping[str, Any]], warmup_iters: int) -> Measured:
    """The measured steps among the metrics of a trial."""
    measured = rows[warmup_iters:]
    shares = [row["busy"] for row in measured if row.get("busy")]
    peaks = [row["peak_bytes"] for row in rows if row.get("peak_bytes")]
    losses = [row["loss"] for row in rows if row.get("loss") is not None]
    return Measured(
        tuple(float(row["iter_time_s"]) for row in measured),
        tuple(fmean(column) for column in zip(*shares, strict=True)),
        fmean([row.get("tokens_per_s", 0.0) for row in measured]) if measured else 0.0,
        tuple(float(value or 0) for value in peaks[-1]) if peaks else (),
        losses[-1] if losses else None,
        all(math.isfinite(loss) for loss in losses),
    )


def judge(measured: Measured, limits: Limits) -> Judgement:
    """Whether more steps would tell more."""
    num = len(measured.steps)
    if not measured.is_finite:
        return "nan"
    if num >= FEW and limits.best_s and measured.typical_s - measured.half_width_s > WORSE * limits.best_s:
        return "worse"
    if num < limits.train_iters:
        return "more"
    is_certain = measured.half_width_s <= limits.confidence * measured.typical_s
    return "enough" if is_certain or num >= limits.max_iters else "more"
