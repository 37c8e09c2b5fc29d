"""Fits the constants of the analytic costs to published runs: descent by coordinates, no random numbers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from statistics import mean, median
from typing import TypeVar

from flagvega.plan.calibration import Calibration
from tools.bench.measured_runs import Constants, Run

SHARED = ("half_width", "link_share", "expert_half_width")
LARGEST = {"half_width": 5000.0, "expert_half_width": 5000.0}
"""Of a shared constant; shares are at most 1."""
START = Constants(Calibration({}, 300.0, 0.65))
START_EFFICIENCY, START_ATTENTION = 0.6, 0.8
STEPS = (0.25, 0.1, 0.04, 0.015)
BETTER = 0.995
"""A step must bring the squared error down to this share of it."""

Chip = tuple[str, str]
K = TypeVar("K", bound=Hashable)


def errors(runs: Iterable[Run], constants: Constants) -> list[float]:
    """Relative error of each row."""
    return [abs(run.predict(constants) / run.value - 1) for run in runs]


def grouped(runs: Iterable[Run], key: Callable[[Run], K]) -> dict[K, list[Run]]:
    """Rows by key, in order."""
    found: dict[K, list[Run]] = {}
    for run in runs:
        found.setdefault(key(run), []).append(run)
    return found


def fit_chip(runs: Sequence[Run], start: Constants) -> Constants:
    """Efficiency and attention of one chip, with all else as it is."""
    chip = runs[0].chip, runs[0].dtype

    def with_attention(share: float) -> Constants:
        table = replace(start.table, attention={**start.table.attention, chip: min(1.0, share)})
        return balance(runs, replace(start, table=table))

    return descend(runs, start.table.attention.get(chip, START_ATTENTION), with_attention)


def fit_foreign(runs: Sequence[Run], start: Constants) -> Constants:
    """Efficiency and start-up of kernels of an engine that flagvega does not run."""
    return descend(runs, 5e-4, lambda launch_s: balance(runs, replace(start, launch_s=launch_s)))


def fit_runtime(runs: Sequence[Run], start: Constants) -> Constants:
    """What a foreign engine's runtime takes of a device: the median of what is left of each figure."""
    bare = replace(start, runtime_bytes=0.0)
    return replace(start, runtime_bytes=median(run.value - run.predict(bare) for run in runs))


def balance(runs: Sequence[Run], start: Constants) -> Constants:
    """The efficiency at which a chip's rows are neither too slow nor too fast."""
    chip, found = (runs[0].chip, runs[0].dtype), start
    share = start.table.efficiency.get(chip, START_EFFICIENCY)
    for _ in range(4):
        found = replace(start, table=replace(start.table, efficiency={**start.table.efficiency, chip: share}))
        share = min(1.0, share * median(run.predict(found) / run.value for run in runs))
    return found


def descend(runs: Sequence[Run], value: float, make: Callable[[float], Constants]) -> Constants:
    """The constants of one value, multiplied and divided as long as the squared error falls."""
    best = make(value)
    least = loss(runs, best)
    for step in STEPS:
        for factor in (1 + step, 1 / (1 + step)):
            while (there := loss(runs, other := make(value * factor))) < BETTER * least:
                value, best, least = value * factor, other, there
    return best


def fit_shared(runs: Sequence[Run], start: Constants) -> Constants:
    """What all chips share, and one chip's own: fitted to the runs of one chip."""
    best = fit_chip(runs, start)
    least = loss(runs, best)
    for step in STEPS:
        moved = True
        while moved:
            moved = False
            for name in SHARED:
                for factor in (1 + step, 1 / (1 + step)):
                    value = min(LARGEST.get(name, 1.0), getattr(best.table, name) * factor)
                    other = fit_chip(runs, replace(best, table=replace(best.table, **{name: value})))
                    if (there := loss(runs, other)) < BETTER * least:
                        best, least, moved = other, there, True
    return best


def loss(runs: Iterable[Run], constants: Constants) -> float:
    """Mean squared relative error."""
    return mean(error * error for error in errors(runs, constants))


def left_out(runs: Sequence[Run], key: Callable[[Run], Hashable],
             refit: Callable[[list[Run]], Constants]) -> list[float]:  # fmt: skip
    """Errors of rows, each with constants fitted to rows of other keys."""
    found: list[float] = []
    for fold, its in grouped(runs, key).items():
        found += errors(its, refit([run for run in runs if key(run) != fold]))
    return found
