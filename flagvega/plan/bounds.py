"""How little time the layers that are still to be placed can add: a relaxation, exact in counts of devices.

For a limit on the time of a step, and so on that of each stage at its place, dynamic programming over
(micro-batches in flight, layers to be placed, devices left) gives the least sum of stage times that places
all layers and the embedding, with the least that each boundary takes. Devices of a kind are alike, so only counts
matter. It never exceeds what a real completion takes.
"""

from __future__ import annotations

from bisect import bisect_right
from math import gcd, inf

import numpy as np
import numpy.typing as npt

from flagvega.plan.costs import Side
from flagvega.plan.stages import StageCosts, Work

Table = npt.NDArray[np.float64]

MAX_IN_FLIGHT = 10
"""Places further from the end are taken to hold this many: less than they do."""


class StageTimes:
    """Times of stages by their number of layers, worked out as far as anybody has asked; for any limit."""

    def __init__(self, relaxed: StageCosts) -> None:
        self.costs = relaxed
        self._times: dict[tuple[Side, int, bool], list[float]] = {}

    def within(self, side: Side, in_flight: int, is_first: bool, threshold_s: float) -> list[float]:
        """Of 1, 2, ... layers (0, 1, ... of a first stage), as far as they are within threshold and memory."""
        times = self._times.setdefault((side, in_flight, is_first), [])
        fewest = 0 if is_first else 1
        while len(times) + fewest <= self.costs.work.shape.layers and (not times or times[-1] <= threshold_s):
            work = Work(0, len(times) + fewest, embedding=is_first, head=False)
            stage = self.costs.stage(side, work, in_flight)
            times.append(stage.time_s if self.costs.fits(side, stage) else inf)
        return times[: bisect_right(times, threshold_s)] if threshold_s < inf else [t for t in times if t < inf]


class Bounds:
    """Least sums of stage times, for plans whose step takes less than ``limit_s``."""

    def __init__(self, stage_times: StageTimes, options: list[Side], limit_s: float) -> None:
        self._stage_times, self._limit_s = stage_times, limit_s
        self._costs = relaxed = stage_times.costs
        self._threshold_s = limit_s / relaxed.num_micro_batches
        self._num_layers = relaxed.work.shape.layers
        self._limit = min(relaxed.num_micro_batches, MAX_IN_FLIGHT)
        self._known_first: dict[tuple[Side, int], Table] = {}
        self._transfers: dict[tuple[int, int], float] = {}
        self._known: dict[tuple[Side, int], list[float]] = {}
        groups = relaxed.machine.groups
        self._options = [
            [side for side in options if side.group == group and self._times(side, 1)] for group in range(len(groups))
        ]
        self._units = [gcd(*(side.degrees.size for side in its)) if its else 1 for its in self._options]
        self._rows = [group.count // unit for group, unit in zip(groups, self._units, strict=True)]
        self._tables: dict[tuple[int, int, int], Table] = {}
        self._rests: dict[tuple[int, int, int], Table] = {}

    def least_s(self, layers: int, in_flight: int, group: int, left: int, untouched: int) -> float:
        """Least sum of times of stages for ``layers`` more layers; infinite when they cannot be placed.

        The stage behind them holds ``in_flight`` micro-batches; ``left`` devices of its ``group`` and all devices
        of the groups in the bit set ``untouched`` are free.
        """
        table = self._table(min(in_flight, self._limit), group, untouched)
        return float(table[left // self._units[group], layers])

    def root_s(self) -> float:
        """Least sum of times of all layers on all devices, memory taken as that of the last stage."""
        row = np.full(self._num_layers + 1, inf)
        row[0] = 0.0
        for group in range(len(self._options)):
            row = _min_plus(row[None, :], self._host(1, group)[-1])[0]
        return float(row[-1])

    def _table(self, in_flight: int, group: int, untouched: int) -> Table:
        """Row n: n units of the group are left; column a: a layers are to be placed."""
        key = in_flight, group, untouched
        if key not in self._tables:
            self._tables[key] = self._deepest(*key) if in_flight >= self._limit else self._step(*key)
        return self._tables[key]

    def _step(self, in_flight: int, group: int, untouched: int) -> Table:
        """One more stage, then the table of what remains."""
        found = np.full((self._rows[group] + 1, self._num_layers + 1), inf)
        same = self._table(in_flight + 1, group, untouched)
        for side in self._options[group]:
            size = side.degrees.size // self._units[group]
            if size > self._rows[group]:
                continue
            for layers, time_s in enumerate(self._times(side, in_flight + 1), start=1):
                ahead = self._before(same[: len(same) - size, :-layers], time_s)
                np.minimum(found[size:, layers:], ahead, out=found[size:, layers:])
            first = self._first_times(side, in_flight + 1)
            np.minimum(found[size:, : len(first)], first, out=found[size:, : len(first)])
        found += 2 * self._least_transfer_s(group, group)
        np.minimum(found, self._enter(in_flight + 1, group, untouched), out=found)
        return found

    def _enter(self, in_flight: int, behind: int, untouched: int) -> Table:
        """The least when the next stage opens one of the untouched groups, by layers."""
        key = in_flight, behind, untouched
        if key not in self._rests:
            row = np.full(self._num_layers + 1, inf)
            for group in range(len(self._options)):
                if not untouched >> group & 1 or not self._options[group]:
                    continue
                ahead = self._table(in_flight, group, untouched & ~(1 << group))
                transfer_s = 2 * self._least_transfer_s(group, behind)
                for side in self._options[group]:
                    left = ahead[self._rows[group] - side.degrees.size // self._units[group]]
                    for layers, time_s in enumerate(self._times(side, in_flight), start=1):
                        np.minimum(row[layers:], self._before(left[:-layers], time_s) + transfer_s, out=row[layers:])
                    first = self._first_times(side, in_flight) + transfer_s
                    np.minimum(row[: len(first)], first, out=row[: len(first)])
            self._rests[key] = row
        return self._rests[key]

    def _before(self, rest: Table, time_s: float) -> Table:
        """Sums with one more stage behind; none where all micro-batches of it, after the rest, end too late."""
        return np.where(rest < self._limit_s - self._costs.num_micro_batches * time_s, rest + time_s, inf)

    def _deepest(self, in_flight: int, group: int, untouched: int) -> Table:
        """From here on every stage is taken to hold ``in_flight``: order no longer matters."""
        found = self._host(in_flight, group)
        for other in range(len(self._options)):
            if untouched >> other & 1:
                found = _min_plus(found, self._host(in_flight, other)[-1])
        return found

    def _host(self, in_flight: int, group: int) -> Table:
        """Row n: layers that n units of devices of a group may hold, and the least sum of times of their stages."""
        table = np.full((self._rows[group] + 1, self._num_layers + 1), inf)
        table[:, 0] = 0.0
        choices = [(side.degrees.size // self._units[group], self._times(side, in_flight))
                   for side in self._options[group]]  # fmt: skip
        for row in range(1, len(table)):
            table[row] = table[row - 1]
            for size, times in choices:
                if size <= row:
                    before = table[row - size]
                    for layers, time_s in enumerate(times, start=1):
                        np.minimum(table[row, layers:], before[:-layers] + time_s, out=table[row, layers:])
        return table

    def _times(self, side: Side, in_flight: int) -> list[float]:
        """Times of stages of 1, 2, ... layers, as far as they are within threshold and memory."""
        key = side, in_flight
        if key not in self._known:
            self._known[key] = self._stage_times.within(side, in_flight, False, self._threshold_s)
        return self._known[key]

    def _first_times(self, side: Side, in_flight: int) -> Table:
        """Times of first stages of 0, 1, 2, ... layers."""
        key = side, in_flight
        if key not in self._known_first:
            times = self._stage_times.within(side, in_flight, True, self._threshold_s)
            self._known_first[key] = np.array(times)
        return self._known_first[key]

    def _least_transfer_s(self, sender: int, receiver: int) -> float:
        """The least time over a boundary between two groups."""
        key = sender, receiver
        if key not in self._transfers:
            pairs = ((a, b) for a in self._options[sender] for b in self._options[receiver])
            self._transfers[key] = min((self._costs.transfer_s(a, b) for a, b in pairs), default=0.0)
        return self._transfers[key]


def _min_plus(table: Table, row: Table) -> Table:
    """Least sums over every way of sharing layers between a table's rows and one row."""
    found = np.full_like(table, inf)
    for layers in np.flatnonzero(np.isfinite(row)):
        width = table.shape[1] - layers
        np.minimum(found[:, layers:], table[:, :width] + row[layers], out=found[:, layers:])
    return found
