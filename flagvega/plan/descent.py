"""Plans of a table one by one, from the first stage to the last, as long as their bound is below the best time known.

The table tells for every way to go on what the rest of the round takes at least, so that the way down to a plan of the
least round has no dead ends, and the bound of a partial plan has the exact costs of the stages that it has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

import numpy as np

from flagvega.plan.costs import Side
from flagvega.plan.rows import Seconds
from flagvega.plan.simulate import num_loops
from flagvega.plan.space import Candidate
from flagvega.plan.stages import Work
from flagvega.plan.table import Table

ROUNDING = 1e-9
"""Plans are left to another table when their load exceeds the cap by more than this share."""


@dataclass(frozen=True)
class Node:
    """The beginning of a pipeline, up to some stage."""

    bound_s: float
    depth: int
    in_flight: int
    """Of its last stage."""
    layers: int
    """Still to be placed."""
    side: Side
    left: int
    """Devices of the side's group that are free."""
    behind: int
    """Groups not used yet, as a bit set."""
    before_s: float
    """What of the round comes before its last stage."""
    through_s: float
    """The same with that stage."""
    time_s: float
    backward_s: float
    load_s: float
    """The least that stages and loops add to a round."""
    ahead_s: float
    """The most that a stage adds to two rounds."""
    alone_s: float
    """Least time of a step by one stage and those before it."""
    reduction_s: float
    """Of the first stage."""
    optimizer_s: float
    """Of the slowest so far."""
    work: Work
    earlier: Node | None = None

    @property
    def is_complete(self) -> bool:
        """Whether its last stage is the pipeline's."""
        return self.work.head

    def stages(self) -> list[Node]:
        """All stages, first one first."""
        found: list[Node] = []
        here: Node | None = self
        while here is not None:
            found.append(here)
            here = here.earlier
        return found[::-1]


class Descent:
    """Grows plans of one table."""

    def __init__(self, table: Table, least_load_s: float) -> None:
        self.table, self.batch = table, table.batch
        self._problem, self._costs, self._m = self.batch.problem, self.batch.costs, self.batch.num_micro_batches
        self.least_load_s = least_load_s
        self._follows: dict[tuple[int, Side, int, int], Seconds] = {}

    def roots(self, below_s: float) -> list[Node]:
        """First stages, and whole pipelines of one stage; the best bound last."""
        found: list[Node] = []
        everything = self.table.everything
        for group, options in self.batch.options.items():
            behind = everything & ~(1 << group)
            for side in options:
                left = self._problem.devices(group) - side.degrees.size
                if left < 0 or not self._problem.may_begin(side, self.batch.samples):
                    continue
                for level in range(1, self.table.num_levels):
                    found += self._fill(None, level, side, behind, left, below_s)
        return sorted(found, key=lambda node: -node.bound_s)

    def children(self, node: Node, below_s: float) -> list[Node]:
        """Stages that may come next; the best bound last."""
        found: list[Node] = []
        for level, side, behind, left in self._places(node):
            found += self._fill(node, level, side, behind, left, below_s)
        return sorted(found, key=lambda child: -child.bound_s)

    def candidate(self, node: Node) -> Candidate:
        """The plan that a complete node is."""
        nodes = node.stages()
        slow = [i for i, (a, b) in enumerate(zip(nodes, nodes[1:], strict=False)) if a.in_flight - b.in_flight > 1]
        return Candidate(self.batch.samples, tuple((its.side, its.work) for its in nodes), tuple(slow))

    def _places(self, node: Node) -> Iterator[tuple[int, Side, int, int]]:
        table, problem, group = self.table, self._problem, node.side.group
        level = node.in_flight - 1
        for side in self.batch.options[group]:
            if side.degrees.size <= node.left:
                yield level, side, node.behind, node.left - side.degrees.size
        if node.left and group in problem.kept:
            return
        for other in table.followers(group, node.behind):
            for side in self.batch.options[other]:
                left = problem.devices(other) - side.degrees.size
                for before in table.steps(node.in_flight) if left >= 0 else ():
                    yield before, side, node.behind & ~(1 << other), left

    def _fill(
        self, node: Node | None, level: int, side: Side, behind: int, left: int, below_s: float
    ) -> Iterator[Node]:
        """Stages on a side with every number of layers."""
        if not self._problem.may_stand(level, node.depth + 1 if node else 1, behind.bit_count()):
            return
        total = node.layers if node else self.batch.num_layers
        transfer_s = self._costs.transfer_s(node.side, side) if node else 0.0
        before_s = node.through_s + 2 * transfer_s if node else 0.0
        if level == 1:
            layers, rest_s = self._ending(side, behind, left, total)
        else:
            layers, rest_s = self._going_on(node, level, side, behind, left, total, below_s - before_s)
        for number, rest in zip(layers, rest_s, strict=True):
            begin = self.batch.num_layers - total
            work = Work(begin, begin + number, embedding=node is None, head=level == 1)
            child = self._grow(node, level, side, behind, left, work, before_s, float(rest))
            if child and child.bound_s < below_s:
                yield child

    def _ending(self, side: Side, behind: int, left: int, total: int) -> tuple[list[int], list[float]]:
        kept = self._problem.kept
        unused = any(behind >> group & 1 for group in kept) or (side.group in kept and left > 0)
        return ([], []) if unused else ([total], [0.0])

    def _going_on(self, node: Node | None, level: int, side: Side, behind: int, left: int, total: int,
                  most_s: float) -> tuple[list[int], list[float]]:  # fmt: skip
        """Numbers of layers that leave a rest within the table, and the least that the rest of the round takes."""
        key = level, side, behind, left
        if key not in self._follows:
            self._follows[key] = self.table.follow(level, side, behind, left)
        fewest = 0 if node is None else 1
        time_s = self._times(node, level, side, total)
        rest = self._follows[key][: total - fewest + 1][::-1][: len(time_s)]
        time_s = time_s[: len(rest)]
        load_s = np.maximum(self.least_load_s, rest + (self._m - level) * time_s if self._m > level else 0.0)
        found = np.flatnonzero(time_s + rest + load_s < most_s)
        return [int(i) + fewest for i in found], [float(rest[i]) for i in found]

    def _times(self, node: Node | None, level: int, side: Side, total: int) -> Seconds:
        """Least times of stages with as many layers as there may be, the last of which ``total`` layers end."""
        if node is None:
            return self.batch.first(side, level, self.table.limits)
        times = self.table.middle(level, side)
        if times.shape[1] == 1:
            return times[:, 0]
        rows = np.arange(min(len(times), total))
        return times[rows, total - 1 - rows]

    def _grow(self, node: Node | None, level: int, side: Side, behind: int, left: int, work: Work, before_s: float,
              rest_s: float) -> Node | None:  # fmt: skip
        depth = node.depth + 1 if node else 1
        stage = self._costs.stage(side, work, level)
        if not self._costs.fits(side, stage):
            return None
        m, time_s = self._m, stage.time_s
        through_s = before_s + time_s
        load_s = max(self.batch.load_s(time_s, stage.forward_s, level), self._loops_s(node, level, through_s, rest_s))
        loops = num_loops(m, level, level)
        load_s = max(load_s, loops * (time_s + rest_s) + (m - 1 - loops * level) * stage.backward_s)
        ahead_s = (m - 1 - level) * time_s - before_s if m > level else -inf
        alone_s, optimizer_s = m * time_s + before_s, stage.optimizer_s
        reduction_s = stage.reduction_s
        if node:
            load_s, ahead_s = max(node.load_s, load_s), max(node.ahead_s, ahead_s)
            alone_s, optimizer_s = max(node.alone_s, alone_s), max(node.optimizer_s, optimizer_s)
            reduction_s = node.reduction_s
        if load_s > self.table.limits.load_s * (1 + ROUNDING):
            return None
        round_s = through_s + rest_s
        bound_s = max(round_s + max(load_s, self.least_load_s), 2 * round_s + ahead_s, alone_s)
        return Node(
            bound_s + reduction_s + optimizer_s, depth, level, self.batch.num_layers - work.end, side,
            left, behind, before_s, through_s, time_s, stage.backward_s, load_s, ahead_s, alone_s, reduction_s,
            optimizer_s, work, node,
        )  # fmt: skip

    def _loops_s(self, node: Node | None, level: int, through_s: float, rest_s: float) -> float:
        """What loops from earlier stages, to this one and to the last, add to a round at least: see ``lower_bound_s``.

        ``through_s`` of the round are over with this stage, ``rest_s`` follow at least.
        """
        worst, m = -inf, self._m
        here = node
        while here is not None:
            first, loop_s = here.in_flight, through_s - here.before_s
            for step, seconds in ((first - level + 1, loop_s), (first, loop_s + rest_s)):
                loops = num_loops(m, first, step)
                worst = max(worst, loops * seconds + (m - 1 - loops * step) * here.backward_s)
            here = here.earlier
        return worst
