"""Stages on one side with every number of layers at once: least times at any place of the pipeline, as arrays.

Exact where all layers are alike; where they are not, no more than what :class:`StageCosts` tells.
"""

from __future__ import annotations

from math import inf

import numpy as np
import numpy.typing as npt

from flagvega.plan.costs import Side
from flagvega.plan.stages import StageCosts, Work

Seconds = npt.NDArray[np.float64]

_ROUNDING = 1e-9


class StageRows:
    """Row i: a stage of the i-th least number of layers. Column a: with ``a`` layers behind it."""

    def __init__(self, costs: StageCosts, side: Side, embedding: bool, head: bool) -> None:
        self._costs, self._side, self._embedding, self._head = costs, side, embedding, head
        self._fewest = 0 if embedding or head else 1
        self._num_layers = costs.work.shape.layers
        self._limit_bytes = costs.machine.groups[side.group].memory_bytes
        kinds = [costs.kinds(side)[kind] for kind in dict.fromkeys(costs.layer_kinds)]
        self._alike = len(kinds) == 1
        self._saved_bytes = max(its.activation - its.entry for _, _, its in kinds)
        self._again_s = min(forward_s for forward_s, _, _ in kinds)
        self._rows: list[list[tuple[float, ...]]] = []
        self._is_linear = self._alike and costs.pinned is None and self._num_layers > 2
        self._table: Seconds = np.zeros((5, 0, 1))
        self._known: dict[tuple[str, ...], tuple[float, ...]] = {}
        if self._is_linear:
            self._table = self._line()

    def __len__(self) -> int:
        return max(len(self._rows), len(self._table[0]))

    def grow(self, longest_s: float) -> None:
        """Add rows as long as any stage of the last one takes no more than that."""
        while not self._is_linear and len(self._rows) + self._fewest <= self._num_layers:
            if self._rows and min(cell[0] for cell in self._rows[-1]) > longest_s:
                break
            self._rows.append(self._row(len(self._rows) + self._fewest))

    def times(self, in_flight: int | npt.NDArray[np.int64]) -> tuple[Seconds, Seconds]:
        """(time, forward) of all rows with so many micro-batches in flight; infinite where there is no room.

        Of several numbers of micro-batches, ``in_flight`` an array that ends in two dimensions of 1, the times have
        one more dimension in front of the rows.
        """
        if self._table.shape[1] < len(self._rows):
            width = max(len(row) for row in self._rows)
            padded = [row + [(inf, 0.0, inf, 0.0, 0.0)] * (width - len(row)) for row in self._rows]
            self._table = np.array(padded).transpose(2, 0, 1)
        time_s, forward_s, fixed, each, beside = self._table
        layers = np.arange(self._fewest, self._fewest + len(time_s))[:, None]
        needed = fixed + in_flight * each - self._limit_bytes
        again = np.zeros_like(needed)
        short = needed > 0
        if short.any() and self._saved_bytes > 0:
            layers_again = (needed + beside) / (in_flight * self._saved_bytes)
            if self._alike:
                layers_again = np.ceil(layers_again - _ROUNDING)
            again = np.where(short, layers_again, 0.0)
        is_full = (again > layers * (1 + _ROUNDING)) | (short & (self._costs.pinned is not None))
        return np.where(is_full, inf, time_s + again * self._again_s), forward_s

    def _line(self) -> Seconds:
        """All rows at once, where every further layer adds the same."""
        one, most = (np.array(self._cell(0, layers)) for layers in (1, self._num_layers))
        found = one + np.arange(self._num_layers)[:, None] * ((most - one) / (self._num_layers - 1))
        if not self._fewest:
            found = np.vstack([self._cell(0, 0), found])
        return np.ascontiguousarray(found.T[:, :, None])

    def _row(self, layers: int) -> list[tuple[float, ...]]:
        if self._embedding or self._alike:
            return [self._cell(0, layers)]
        last = self._num_layers - layers
        return [self._cell(begin, layers) for begin in ([last] if self._head else range(last, -1, -1))]

    def _cell(self, begin: int, layers: int) -> tuple[float, ...]:
        """Time, forward, bytes without activations, bytes of one micro-batch, and bytes that recompute needs beside."""
        kinds = self._costs.layer_kinds[begin : begin + layers]
        if kinds not in self._known:
            work = Work(begin, begin + layers, embedding=self._embedding, head=self._head)
            least, most = self._costs.extremes(self._side, work)
            each = least.memory.activations
            beside = most.memory.workspace - least.memory.workspace if self._alike else 0.0
            self._known[kinds] = least.time_s, least.forward_s, least.memory.total - each, each, beside
        return self._known[kinds]
