"""A bound on the rounds of a batch without the order of stages: devices have prices, only layers and depth are counted.

The table's question, the least round when no stage adds more than a cap, is relaxed: stages take devices at a price
for each kind of chip instead of from a stock, which kind follows which does not matter, and what all devices cost is
taken off again. For any prices this is no more than the table's answer (Lagrangian duality), and dynamic programming
over layers and micro-batches in flight works it out in milliseconds however many devices there are. Prices rise where
more devices are taken than there are, until the bound is as good as needed or gets no better.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from flagvega.plan.batch import Batch
from flagvega.plan.rows import Seconds

TRIALS = 30
PATIENCE, LEAST_REACH = 5, 0.05
"""Prices that are tried; how many without a better bound before steps are halved, and the shortest of them."""

Grid = npt.NDArray[np.int64]


@dataclass
class _Stages:
    """First, middle or last stages on devices of one kind and number, each with what may stand there at least."""

    time_s: Seconds
    load_s: Seconds
    onwards_s: float
    """Over the boundary behind, there and back."""


@dataclass(frozen=True)
class _Times:
    """Least times by level and number of layers, and the slots that have them."""

    seconds: Seconds
    slot: Grid


class Prices:
    """Bounds on the rounds of one batch, for any cap."""

    def __init__(self, batch: Batch) -> None:
        self._batch, self._num_layers, self._m = batch, batch.num_layers, batch.num_micro_batches
        self._groups = list(batch.options)
        self._counts = np.array([batch.problem.devices(group) for group in self._groups], dtype=float)
        self._jumps = len(self._groups) if batch.problem.choices.slow_boundaries else 1
        self._prices = np.zeros(len(self._groups))
        """Seconds for all devices of a kind; the best that were tried last."""
        self._longest_s = -1.0
        self._places: list[list[list[_Stages]]] = []
        """Of first, middle and last stages, by slot: a number of devices of a kind of chip."""
        self._slots: list[tuple[int, int]] = []

    def least_round_s(self, cap_s: float, limit_s: float, enough_s: float, tick: Callable[[], None]) -> float:
        """No plan that keeps the cap and takes less than the limit has a round below this.

        The trials end when it exceeds ``enough_s``.
        """
        longest_s = limit_s / self._m
        self._prepare(longest_s)
        enough_s = min(enough_s, self._alone_s(cap_s, longest_s))
        levels = self._num_layers + 1 + self._jumps
        first, middle = (self._within(slots, levels, cap_s, longest_s) for slots in self._places[:2])
        last = self._within(self._places[2], 1, cap_s, longest_s)
        found_s, prices, reach, idle = -inf, self._prices, 1.0, 0
        for _ in range(TRIALS):
            tick()
            value_s, used = self._solve(first, middle, last, prices)
            idle += 1
            if value_s > found_s:
                found_s, self._prices, idle = value_s, prices, 0
            if found_s >= enough_s:
                break
            excess = used / self._counts - 1
            if idle >= PATIENCE:
                reach, idle, prices = reach / 2, 0, self._prices
                if reach < LEAST_REACH:
                    break
                continue
            excess[(prices <= 0) & (excess < 0)] = 0
            norm = float(excess @ excess)
            if norm == 0:
                break
            prices = np.maximum(0, prices + reach * (enough_s - value_s) / norm * excess)
        return min(found_s, enough_s)

    def _prepare(self, longest_s: float) -> None:
        """Know all stages that take no longer."""
        if longest_s <= self._longest_s:
            return
        self._longest_s = longest_s
        batch, levels = self._batch, np.arange(1, self._num_layers + 2 + self._jumps)
        receivers = [side for options in batch.options.values() for side in options]
        found: dict[tuple[int, int], list[list[_Stages]]] = {}
        for index, group in enumerate(self._groups):
            for side in batch.options[group]:
                slot = found.setdefault((index, side.degrees.size), [[], [], []])
                slot[2].append(_Stages(*batch.least(side, levels[:1], longest_s, head=True), 0.0))
                first = batch.least(side, levels, longest_s, embedding=True)
                middle = batch.least(side, levels, longest_s)
                if min(first[0].min(), middle[0].min()) <= longest_s:
                    onwards_s = 2 * min(batch.costs.transfer_s(side, receiver) for receiver in receivers)
                    slot[0].append(_Stages(*first, onwards_s))
                    slot[1].append(_Stages(*middle, onwards_s))
        self._slots = list(found)
        self._places = [[its[place] for its in found.values()] for place in range(3)]

    def _alone_s(self, cap_s: float, longest_s: float) -> float:
        """The least time of a stage that is the whole pipeline."""
        times = (self._batch.whole_s(side) for options in self._batch.options.values() for side in options)
        return min((its for its in times if its <= longest_s and (self._m - 1) * its <= cap_s), default=inf)

    def _within(self, slots: list[list[_Stages]], num_levels: int, cap_s: float, longest_s: float) -> Seconds:
        """Least times within the limits: by slot, place from the end, and layers."""
        jumps = min(self._jumps, num_levels)
        found = np.full((len(slots), num_levels - jumps + 1, self._num_layers + 1), inf)
        for target, alike in zip(found, slots, strict=True):
            for its in alike:
                fits = (its.time_s <= longest_s) & (its.load_s <= cap_s)
                time_s = np.where(fits, its.time_s + its.onwards_s, inf)
                rows = target[:, : time_s.shape[1]]
                for jump in range(jumps):
                    np.minimum(rows, time_s[jump : jump + len(rows)], out=rows)
        return found[:, :, : int(np.isfinite(found).any(axis=(0, 1)).nonzero()[0].max(initial=0)) + 1]

    def _solve(self, first: Seconds, middle: Seconds, last: Seconds, prices: Seconds) -> tuple[float, Seconds]:
        """The least of round and price, less the price of all devices; and the devices taken."""
        used = np.zeros(len(prices))
        begin, between, end = (self._cheapest(times, prices) for times in (first, middle, last))
        width, best_s, best, steps = between.seconds.shape[1], inf, (0, 0), []
        padded = np.full(width + self._num_layers, inf)
        behind, ways = padded[width - 1 :], sliding_window_view(padded, width)
        behind[: end.seconds.shape[1]] = end.seconds[0]
        rows = np.arange(self._num_layers + 1)
        turned = between.seconds[:, ::-1]
        for level in range(1, len(begin.seconds)):
            opening = begin.seconds[level] + behind[::-1][: begin.seconds.shape[1]]
            layers = int(opening.argmin())
            if opening[layers] < best_s:
                best_s, best = float(opening[layers]), (level, layers)
            sums = ways + turned[level]
            chosen = sums.argmin(axis=1)
            behind[:] = sums[rows, chosen]
            steps.append(width - 1 - chosen)
            if behind.min() >= best_s:
                break
        if best_s == inf:
            return inf, used
        level, layers = best
        left = self._num_layers - layers
        taken = [int(begin.slot[level, layers])]
        for here in range(level - 1, 0, -1):
            layers = int(steps[here - 1][left])
            taken.append(int(between.slot[here, layers]))
            left -= layers
        for slot in [*taken, int(end.slot[0, left])]:
            index, size = self._slots[slot]
            used[index] += size
        return best_s - float(prices.sum()), used

    def _cheapest(self, times: Seconds, prices: Seconds) -> _Times:
        """The slots with the least time and price."""
        cost_s = np.array([prices[index] * size / self._counts[index] for index, size in self._slots])
        total_s = times + cost_s[:, None, None]
        slot = total_s.argmin(axis=0)
        return _Times(np.take_along_axis(total_s, slot[None], 0)[0], slot)
