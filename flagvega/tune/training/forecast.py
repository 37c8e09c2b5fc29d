"""What the planner predicts of layouts: many at once by a bound, few by the simulation that `action=estimate` runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from flagvega.layout.plan import Recompute
from flagvega.layout.request import MeshRequest
from flagvega.plan.chunks import cost_stages
from flagvega.plan.costs import Side
from flagvega.plan.explain import Outlook, outlook_of
from flagvega.plan.interleaved import Interleaved, run_schedule
from flagvega.plan.simulate import Pipeline
from flagvega.plan.space import Candidate, Problem
from flagvega.plan.stages import StageCosts, Work
from flagvega.tune.training.layouts import Splits
from flagvega.tune.training.shape import Shape, degrees_of

Floats = NDArray[np.float64]
Correction = Callable[[MeshRequest, float, float], float]
"""By what the time of a stage is to be multiplied: of its mesh, its samples of a rank, and the share of its time that
is the model's head. The logarithm is linear in that share."""


def uncorrected(_mesh: MeshRequest, _samples: float, _head: float) -> float:
    """As the planner predicts."""
    return 1.0


SLACK = 1.05
"""A stage may be predicted to need this many times the memory it may have: the prediction is not that exact."""


@dataclass(frozen=True)
class Table:
    """One stage by its number of layers, from none to all."""

    forward_s: Floats
    backward_s: Floats
    left_s: Floats
    """Reduction and optimizer."""
    memory_share: Floats
    """Of what the device may hold."""


@dataclass
class Forecast:
    """Predictions for one problem; what is worked out once is kept."""

    problems: Mapping[bool, Problem]
    """By whether the optimizer is distributed."""
    utilization: float = 1.0
    """Share of a device's memory that may be used."""
    slow: tuple[int, ...] | None = None
    """Boundaries with one more micro-batch in flight; None: those between unlike chips."""
    _costs: dict[tuple[int, bool, tuple[Recompute, ...] | None], StageCosts] = field(default_factory=dict)
    _tables: dict[tuple[object, ...], Table] = field(default_factory=dict)

    @property
    def problem(self) -> Problem:
        """One of them: the work, the machine and what is legal are the same."""
        return next(iter(self.problems.values()))

    @cached_property
    def alike(self) -> bool:
        """Whether all layers of the model are of one kind."""
        return len(set(self.problem.stage_costs(1).layer_kinds)) == 1

    # ---- many ----

    def times(self, shape: Shape, splits: Splits, corrected: Correction) -> tuple[Floats, Floats]:
        """(seconds a step, largest share of a device's memory) of every split; the time is a bound."""
        if not self.alike or shape.virtual_stages > 1:
            return self._one_by_one(shape, splits, corrected)
        meshes, costs = shape.stage_meshes, self._stage_costs(shape)
        num, m = len(meshes), costs.num_micro_batches
        flights = [self._in_flight(shape, i) for i in range(num)]
        tables = [self._table(shape, i, flights[i]) for i in range(num)]
        time = [(table.forward_s + table.backward_s)[splits[:, i]] for i, table in enumerate(tables)]
        for i, mesh in enumerate(meshes):
            samples = shape.samples / (mesh.dp or 1)
            plain = corrected(mesh, samples, 0.0)
            if i == num - 1:
                head = self._head_s(shape) / np.maximum(time[i], 1e-12)
                time[i] = time[i] * (corrected(mesh, samples, 1.0) / plain) ** head
            time[i] = time[i] * plain
        transfers = [costs.transfer_s(self.side(a), self.side(b)) for a, b in zip(meshes, meshes[1:], strict=False)]
        before = np.zeros(len(splits))
        total = np.zeros(len(splits))
        share = np.zeros(len(splits))
        for i in range(num):
            period = time[i]
            if i + 1 < num:
                step = flights[i] - flights[i + 1] + 1
                period = np.maximum(period, (time[i] + time[i + 1] + 2 * transfers[i]) / step)
                period = np.maximum(period, transfers[i])
            left = tables[i].left_s[splits[:, i]]
            total = np.maximum(total, m * period + before + left)
            share = np.maximum(share, tables[i].memory_share[splits[:, i]])
            if i + 1 < num:
                before = before + time[i] + 2 * transfers[i]
        return total, share

    def _one_by_one(self, shape: Shape, splits: Splits, corrected: Correction) -> tuple[Floats, Floats]:
        totals, shares = np.zeros(len(splits)), np.zeros(len(splits))
        for i, split in enumerate(splits):
            outlook = self.look(shape, tuple(int(layers) for layers in split))
            totals[i] = self.simulated_s(shape, outlook, corrected)
            shares[i] = max(self.memory_shares(shape, outlook))
        return totals, shares

    def _table(self, shape: Shape, stage: int, in_flight: int) -> Table:
        mesh, num = shape.stage_meshes[stage], len(shape.stage_meshes)
        costs, side = self._stage_costs(shape), self.side(mesh)
        flight = min(in_flight, costs.num_micro_batches)
        key = (shape.samples, shape.distributed_optimizer, shape.recompute, side, flight, stage == 0, stage == num - 1)
        if key not in self._tables:
            layers = self.problem.work.shape.layers
            found = [costs.stage(side, Work(0, n, stage == 0, stage == num - 1), flight) for n in range(layers + 1)]
            limit = self.problem.machine.groups[side.group].memory_bytes * self.utilization
            self._tables[key] = Table(
                np.array([stage.forward_s for stage in found]),
                np.array([stage.backward_s for stage in found]),
                np.array([stage.reduction_s + stage.optimizer_s for stage in found]),
                np.array([stage.memory.total / limit for stage in found]),
            )
        return self._tables[key]

    # ---- few ----

    def candidate(self, shape: Shape, split: tuple[int, ...]) -> Candidate:
        """The layout in the planner's words; chunks of a stage have equal shares of its layers."""
        num, virtual = len(split), shape.virtual_stages
        ends = list(accumulate(layers // virtual for layers in split * virtual))
        begins = [0, *ends[:-1]]
        stages = []
        for i, mesh in enumerate(shape.stage_meshes):
            first, *later = (
                Work(begins[j], ends[j], embedding=j == 0, head=j == num * virtual - 1)
                for j in range(i, num * virtual, num)
            )
            stages.append((self.side(mesh), replace(first, later=tuple(later))))
        return Candidate(shape.samples, tuple(stages), () if virtual > 1 else self._slow(shape))

    def look(self, shape: Shape, split: tuple[int, ...]) -> Outlook:
        """Cost and simulate one layout."""
        candidate = self.candidate(shape, split)
        return outlook_of(candidate, self._pinned(shape), cost_stages(candidate, self._stage_costs(shape)))

    def simulated_s(self, shape: Shape, outlook: Outlook, corrected: Correction) -> float:
        """Seconds a step, with every stage's time corrected."""
        heads = self.head_shares(shape, outlook)
        factors = [
            corrected(mesh, shape.samples / (mesh.dp or 1), head)
            for mesh, head in zip(shape.stage_meshes, heads, strict=True)
        ]
        return run_schedule(_scaled(outlook.pipeline, factors)).total_s

    def head_shares(self, shape: Shape, outlook: Outlook) -> list[float]:
        """Of the time of each stage, what is the model's head: none but in the last."""
        last = outlook.stages[-1].time_s
        return [0.0] * (len(outlook.stages) - 1) + [self._head_s(shape) / last if last else 0.0]

    def _head_s(self, shape: Shape) -> float:
        """Of one micro-batch, both passes."""
        forward_s, backward_s, _ = self._stage_costs(shape).parts(self.side(shape.meshes[-1])).kinds["head"]
        return forward_s + backward_s

    def limit_bytes(self, mesh: MeshRequest) -> float:
        """What a device of a mesh may hold."""
        return self.problem.machine.groups[self.side(mesh).group].memory_bytes * self.utilization

    def memory_shares(self, shape: Shape, outlook: Outlook) -> list[float]:
        """Of what a device of each stage may hold."""
        groups = self.problem.machine.groups
        return [
            stage.memory.total / (groups[side.group].memory_bytes * self.utilization)
            for stage, (side, _) in zip(outlook.stages, outlook.candidate.stages, strict=True)
        ]

    # ---- parts ----

    def _pinned(self, shape: Shape) -> Problem:
        problem = self.problems[shape.distributed_optimizer]
        sharded = shape.distributed_optimizer
        return replace(
            problem, choices=replace(problem.choices, recompute=shape.recompute, distributed_optimizer=sharded)
        )

    def _stage_costs(self, shape: Shape) -> StageCosts:
        key = shape.samples, shape.distributed_optimizer, shape.recompute
        if key not in self._costs:
            self._costs[key] = self._pinned(shape).stage_costs(shape.samples)
        return self._costs[key]

    def side(self, mesh: MeshRequest) -> Side:
        """A mesh in the planner's words."""
        if mesh not in self._sides:
            chips = [group.chip for group in self.problem.machine.groups]
            self._sides[mesh] = Side(chips.index(str(mesh.chip)), degrees_of(mesh))
        return self._sides[mesh]

    @cached_property
    def _sides(self) -> dict[MeshRequest, Side]:
        return {}

    def _slow(self, shape: Shape) -> tuple[int, ...]:
        meshes = shape.stage_meshes
        unlike = tuple(i for i in range(len(meshes) - 1) if meshes[i].chip != meshes[i + 1].chip)
        return unlike if self.slow is None else tuple(i for i in self.slow if i < len(meshes) - 1)

    def _in_flight(self, shape: Shape, stage: int) -> int:
        return len(shape.stage_meshes) - stage + sum(boundary >= stage for boundary in self._slow(shape))


def _scaled(pipeline: Pipeline, factors: list[float]) -> Pipeline:
    """With the passes of every stage longer by its factor."""
    pairs = list(zip(pipeline.forward, pipeline.backward, factors, strict=True))
    scaled = replace(
        pipeline,
        forward=tuple(time * factor for time, _, factor in pairs),
        backward=tuple(time * factor for _, time, factor in pairs),
    )
    if not isinstance(scaled, Interleaved):
        return scaled
    return replace(
        scaled,
        chunk_forward=_chunks(scaled.chunk_forward, factors),
        chunk_backward=_chunks(scaled.chunk_backward, factors),
    )


def _chunks(times: tuple[tuple[float, ...], ...], factors: list[float]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(time * factor for time in row) for row, factor in zip(times, factors, strict=True))
