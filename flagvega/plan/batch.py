"""All plans with one number of samples in a global micro-batch: sides to choose from, and what stages take there."""

from __future__ import annotations

from collections import defaultdict
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from math import gcd, inf

import numpy as np
import numpy.typing as npt

from flagvega.plan.costs import Side
from flagvega.plan.rows import Seconds, StageRows
from flagvega.plan.space import Problem, sides
from flagvega.plan.stages import Work


@dataclass(frozen=True)
class Limits:
    """What a stage may take and add."""

    time_s: float
    load_s: float


class Batch:
    """Sides by kind of chip, and times of stages by the layers they have; worked out as far as anybody asks."""

    def __init__(self, problem: Problem, samples: int) -> None:
        self.problem, self.samples = problem, samples
        self.costs = problem.stage_costs(samples)
        self.num_micro_batches = self.costs.num_micro_batches
        self.num_layers = problem.work.shape.layers
        found: dict[int, list[Side]] = defaultdict(list)
        for side in sides(problem, samples, self.costs):
            found[side.group].append(side)
        self.options = dict(found)
        """Kinds of chips that can hold a stage at all, each with its ways to do so."""
        self._stages: dict[tuple[Side, bool, bool], StageRows] = {}
        self._shares: dict[Side, float] = {}
        self._timed: dict[tuple[Side, int, bool, bool], tuple[Seconds, Seconds]] = {}

    def coarser(self, parts: int) -> Batch:
        """The same with those sides only that have at least so large a part of their kind of chip."""
        found = copy(self)
        found.options = {
            group: large
            for group, options in self.options.items()
            if (large := [its for its in options if its.degrees.size * parts >= self.problem.devices(group)])
        }
        return found

    @property
    def is_possible(self) -> bool:
        """Whether there is any stage, and all that is kept."""
        return bool(self.options) and all(group in self.options for group in self.problem.kept)

    def load_s(self, time_s: float, forward_s: float, in_flight: int) -> float:
        """What a stage adds to a step beyond the first micro-batch: see ``lower_bound_s``."""
        m = self.num_micro_batches
        return (m - 1) * time_s - (min(in_flight, m) - 1) * forward_s

    def backward_share(self, side: Side) -> float:
        """What of a stage's time its backward pass takes at least."""
        if side not in self._shares:
            parts = [its[:2] for its in self.costs.kinds(side).values()]
            shares = (backward_s / (forward_s + backward_s) for forward_s, backward_s in parts if forward_s)
            self._shares[side] = min(shares, default=1.0)
        return self._shares[side]

    def middle(self, side: Side, in_flight: int, limits: Limits) -> Seconds:
        """Times of stages of 1, 2, ... layers; infinite beyond the limits.

        Column ``a``: ``a`` layers are behind the stage; a single column where all layers are alike.
        """
        return self._within(side, in_flight, limits, False, False)

    def first(self, side: Side, in_flight: int, limits: Limits) -> Seconds:
        """Times of first stages of 0, 1, 2, ... layers; infinite beyond the limits."""
        return self._within(side, in_flight, limits, True, False)[:, 0]

    def last(self, side: Side, limits: Limits) -> Seconds:
        """Times of last stages of 0, 1, 2, ... layers; infinite beyond the limits."""
        return self._within(side, 1, limits, False, True)[:, 0]

    def whole_s(self, side: Side) -> float:
        """Time of a stage that is the whole pipeline."""
        stage = self.costs.stage(side, Work(0, self.num_layers, embedding=True, head=True), 1)
        return stage.time_s if self.costs.fits(side, stage) else inf

    def after_s(self, side: Side, work: Work, in_flight: int) -> float:
        """What follows the last backward pass of a stage."""
        stage = self.costs.stage(side, work, in_flight)
        return stage.reduction_s + stage.optimizer_s

    def least(self, side: Side, levels: npt.NDArray[np.int64], longest_s: float, embedding: bool = False,
              head: bool = False) -> tuple[Seconds, Seconds]:  # fmt: skip
        """Least time and load of stages at any place, by micro-batches in flight and by 0, 1, ... layers.

        Stages that take longer than ``longest_s`` may be left out.
        """
        rows = self._rows(side, embedding, head)
        rows.grow(longest_s)
        flying = np.minimum(levels, self.num_micro_batches)[:, None, None]
        time_s, forward_s = rows.times(flying)
        with np.errstate(invalid="ignore"):
            load_s = (self.num_micro_batches - 1) * time_s - (flying - 1) * forward_s
        load_s = np.nan_to_num(load_s, nan=inf, posinf=inf)
        found = time_s.min(axis=2), load_s.min(axis=2)
        width = int(np.flatnonzero((found[0] <= longest_s).any(axis=0)).max(initial=0)) + 1
        found = found[0][:, :width], found[1][:, :width]
        if embedding or head:
            return found
        none = np.full((len(levels), 1), inf)
        return np.hstack([none, found[0]]), np.hstack([none, found[1]])

    def _rows(self, side: Side, embedding: bool, head: bool) -> StageRows:
        kind = side, embedding, head
        if kind not in self._stages:
            self._stages[kind] = StageRows(self.costs, side, embedding, head)
        return self._stages[kind]

    def _within(self, side: Side, in_flight: int, limits: Limits, embedding: bool, head: bool) -> Seconds:
        rows = self._rows(side, embedding, head)
        rows.grow(limits.time_s)
        key = side, min(in_flight, self.num_micro_batches), embedding, head
        known = self._timed.get(key)
        if known is None or len(known[0]) < len(rows):
            time_s, forward_s = rows.times(key[1])
            with np.errstate(invalid="ignore"):
                load_s = (self.num_micro_batches - 1) * time_s - (key[1] - 1) * forward_s
            known = self._timed[key] = time_s, load_s
        time_s, load_s = known
        within: Seconds = np.where((time_s <= limits.time_s) & (load_s <= limits.load_s), time_s, inf)
        return within[: np.flatnonzero(within.min(axis=1) < inf).max(initial=-1) + 1]

    @property
    def table_steps(self) -> int:
        """About how many numbers a table looks at for each number of micro-batches in flight."""
        cells = 0
        for group, options in self.options.items():
            sizes = {side.degrees.size for side in options}
            cells += len(sizes) * (1 + self.problem.devices(group) // gcd(*sizes))
        return cells * self.num_layers**2 << len(self.options) - 1

    @cached_property
    def fluid_s(self) -> float:
        """Time of a step if layers could be cut anywhere and nobody waited: device-seconds over devices."""
        rate = 0.0
        for group, its in self.options.items():
            least = min(self._device_seconds(side) for side in its)
            rate += self.problem.machine.groups[group].count / least
        return self.num_micro_batches * self.num_layers / rate if rate else inf

    @cached_property
    def least_sum_s(self) -> float:
        """No first micro-batch takes less for its round."""
        return self.num_layers * min(
            self._device_seconds(side) / side.degrees.size for its in self.options.values() for side in its
        )

    @cached_property
    def least_load_s(self) -> float:
        """No plan has less load: some stage takes its share of the work, and has so many in flight at most."""
        share = 1 - min(self.backward_share(side) for its in self.options.values() for side in its)
        m = self.num_micro_batches
        in_flight = min(m, self.num_layers + 1 + len(self.options))
        return (m - 1 - (in_flight - 1) * share) / m * self.fluid_s

    def _device_seconds(self, side: Side) -> float:
        kinds = self.costs.kinds(side)
        return min(sum(kinds[kind][:2]) for kind in dict.fromkeys(self.costs.layer_kinds)) * side.degrees.size
