"""A stage from its layers: seconds and bytes, summed over parts. Everything here holds for any source of costs."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from math import ceil

from flagvega.layout.plan import Recompute
from flagvega.model.shape import ModelShape
from flagvega.model.workload import Workload
from flagvega.plan.costs import Costs, Kind, Side
from flagvega.plan.machine import Machine
from flagvega.plan.memory import (
    CONTEXT_SHARE,
    Held,
    Memory,
    held,
    parameter_bytes,
    pass_bytes,
    step_bytes,
    unused_gradient_bytes,
)


@dataclass(frozen=True)
class Work:
    """What a stage computes: decoder layers ``[begin, end)`` and perhaps an end of the model."""

    begin: int
    end: int
    embedding: bool
    head: bool
    later: tuple[Work, ...] = ()
    """More chunks of the same stage, in model order; the embedding is in its first, the head in its last."""

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        own = self.end - self.begin
        return own + sum(chunk.num_layers for chunk in self.later) if self.later else own

    @property
    def chunks(self) -> tuple[Work, ...]:
        """All chunks of the stage."""
        return replace(self, later=()), *self.later

    @property
    def has_head(self) -> bool:
        """Whether some chunk has the head."""
        return self.chunks[-1].head


@dataclass(frozen=True)
class ChunkCost:
    """One of several chunks of a stage, for one micro-batch."""

    forward_s: float
    backward_s: float
    recomputed: int


@dataclass(frozen=True)
class StageCost:
    """One stage at one place of the pipeline."""

    forward_s: float
    backward_s: float
    reduction_s: float
    optimizer_s: float
    recomputed: int
    """Decoder layers that are computed again, the first ones of the stage."""
    memory: Memory
    chunks: tuple[ChunkCost, ...] = ()
    """Where the stage has several."""

    @property
    def time_s(self) -> float:
        """Of one micro-batch, both passes."""
        return self.forward_s + self.backward_s


@dataclass(frozen=True)
class Parts:
    """One side's costs per part, and their sums over the first layers."""

    kinds: dict[Kind, tuple[float, float, Held]]
    """Forward, backward and what is held."""
    forward: tuple[float, ...]
    backward: tuple[float, ...]
    dense: tuple[float, ...]
    experts: tuple[float, ...]
    activation: tuple[float, ...]
    entry: tuple[float, ...]


@dataclass
class StageCosts:
    """Costs of stages for one number of samples in a global micro-batch."""

    costs: Costs
    work: Workload
    machine: Machine
    samples: int
    """Samples of a global micro-batch."""
    distributed_optimizer: bool
    pinned: tuple[Recompute, ...] | None = None
    relaxed: bool = False
    """Every layer costs, and holds, the least that any kind of layer does: for bounds."""
    _kinds: dict[Side, dict[Kind, tuple[float, float, Held]]] = field(default_factory=dict)
    _parts: dict[Side, Parts] = field(default_factory=dict)
    _stages: dict[tuple[Side, Work, int], StageCost] = field(default_factory=dict)
    _chunks: dict[tuple[Side, Work, int], StageCost] = field(default_factory=dict)
    stacks: dict[tuple[Side, Work, int, int], StageCost] = field(default_factory=dict)
    """Stages of several chunks that were costed already: by side, chunks, stage and number of stages."""
    _transfers: dict[tuple[Side, Side], float] = field(default_factory=dict)

    @property
    def num_micro_batches(self) -> int:
        """Of a step."""
        return self.work.global_batch // self.samples

    @cached_property
    def layer_kinds(self) -> tuple[Kind, ...]:
        """The kind of every decoder layer."""
        return layer_kinds(self.work.shape)

    @cached_property
    def _together(self) -> int:
        """Layers that are computed again in one go, from one saved input."""
        uniform = [part.num_layers or 1 for part in self.pinned or () if part.method == "uniform"]
        return max(uniform, default=1)

    @cached_property
    def _alike(self) -> bool:
        """Whether it does not matter which layers a stage has, only how many."""
        return self.relaxed or len(set(self.layer_kinds)) == 1

    def stage(self, side: Side, work: Work, in_flight: int) -> StageCost:
        """A stage with up to ``in_flight`` micro-batches at once; it recomputes no more than it must."""
        if self._alike and work.begin:
            work = Work(0, work.num_layers, work.embedding, work.head)
        key = side, work, min(in_flight, self.num_micro_batches)
        if key not in self._stages:
            self._stages[key] = self._stage(*key)
        return self._stages[key]

    def extremes(self, side: Side, work: Work) -> tuple[StageCost, StageCost]:
        """A stage with one micro-batch: with the least that may be computed again, and with the most."""
        if self.pinned is not None:
            only = self._with_recompute(side, work, 1, pinned_layers(self.pinned, work.num_layers))
            return only, only
        least = self._with_recompute(side, work, 1, 0)
        return least, self._with_recompute(side, work, 1, work.num_layers) if work.num_layers else least

    def normal(self, work: Work) -> Work:
        """One of all works that cost the same."""
        if not self._alike:
            return work
        later = tuple(map(self.normal, work.later))
        return Work(0, work.end - work.begin, work.embedding, work.head, later)

    def chunk(self, side: Side, work: Work, recomputed: int) -> StageCost:
        """One of several chunks of a stage, with one micro-batch."""
        key = side, self.normal(work), recomputed
        if key not in self._chunks:
            self._chunks[key] = self._with_recompute(side, key[1], 1, recomputed)
        return self._chunks[key]

    def fits(self, side: Side, stage: StageCost) -> bool:
        """Whether a stage has room on its devices."""
        return stage.memory.total <= self.machine.groups[side.group].memory_bytes

    def transfer_s(self, sender: Side, receiver: Side) -> float:
        """One way over a boundary, the mean of both: only their sum counts, as all go there and back."""
        if (sender, receiver) not in self._transfers:
            there_s = self.costs.transfer_s(sender, receiver, self.samples)
            back_s = self.costs.transfer_s(receiver, sender, self.samples)
            self._transfers[sender, receiver] = (there_s + back_s) / 2
        return self._transfers[sender, receiver]

    def parts(self, side: Side) -> Parts:
        """Costs per part on one side."""
        if side not in self._parts:
            self._parts[side] = self._make_parts(side)
        return self._parts[side]

    def _stage(self, side: Side, work: Work, in_flight: int) -> StageCost:
        if self.pinned is not None:
            return self._with_recompute(side, work, in_flight, pinned_layers(self.pinned, work.num_layers))
        limit = self.machine.groups[side.group].memory_bytes
        first = self._with_recompute(side, work, in_flight, 0)
        excess = first.memory.total - limit
        if excess <= 0 or work.num_layers == 0:
            return first
        parts, begin = self.parts(side), work.begin
        for layers in range(1, work.num_layers + 1):
            saved = parts.activation[begin + layers] - parts.activation[begin]
            saved -= parts.entry[begin + layers] - parts.entry[begin]
            if in_flight * saved < excess and layers < work.num_layers:
                continue
            found = self._with_recompute(side, work, in_flight, layers)
            if found.memory.total <= limit:
                return found
        return found

    def _with_recompute(self, side: Side, work: Work, in_flight: int, recomputed: int) -> StageCost:
        parts, begin, end = self.parts(side), work.begin, work.end
        middle = begin + recomputed
        again_s = parts.forward[middle] - parts.forward[begin]
        forward_s = parts.forward[end] - parts.forward[begin]
        backward_s = parts.backward[end] - parts.backward[begin] + again_s
        dense = parts.dense[end] - parts.dense[begin]
        experts = parts.experts[end] - parts.experts[begin]
        together = min(self._together, max(1, recomputed))
        entries = (parts.entry[middle] - parts.entry[begin]) / max(1, recomputed) * ceil(recomputed / together)
        saved = entries + parts.activation[end] - parts.activation[middle]
        again = max((parts.kinds[kind][2].activation for kind in self.layer_kinds[begin:middle]), default=0.0)
        passing = max((parts.kinds[kind][2].workspace for kind in self.layer_kinds[begin:end]), default=0.0)
        workspace = max(together * again, passing)
        for kind in self._ends(work):
            part_forward_s, part_backward_s, its = parts.kinds[kind]
            forward_s, backward_s = forward_s + part_forward_s, backward_s + part_backward_s
            saved, workspace = saved + its.activation, max(workspace, its.workspace)
            is_shared = kind == "head" and work.embedding and self.work.shape.tied
            dense += self.work.shape.hidden if is_shared else its.dense
        if work.num_layers == 0 and not self.relaxed:
            workspace = max(workspace, step_bytes(self.work, side.degrees, self.distributed_optimizer) - saved)
        weights, gradients, optimizer = parameter_bytes(
            self.work, side.degrees, dense, experts, self.distributed_optimizer
        )
        kinds = {*self.layer_kinds[begin:end], *self._ends(work)}
        unused = 0.0 if self.relaxed else unused_gradient_bytes(self.work, kinds, side.degrees)
        context = CONTEXT_SHARE * self.machine.groups[side.group].memory_bytes
        return StageCost(
            forward_s,
            backward_s,
            self.costs.reduction_s(side.group, side.degrees, dense, experts, backward_s),
            self.costs.optimizer_s(side.group, side.degrees, dense, experts),
            recomputed,
            Memory(weights, gradients, optimizer, in_flight * saved, workspace + unused, context),
        )

    def _ends(self, work: Work) -> list[Kind]:
        ends: list[Kind] = ["embedding"] if work.embedding else []
        return [*ends, "head"] if work.head else ends

    def _held(self, side: Side, kind: Kind, samples: int) -> Held:
        """What a part holds: by its shape, but for saved activations that were measured."""
        its = held(self.work, kind, side.degrees, samples)
        saved = self.costs.activation_bytes(side.group, kind, side.degrees, samples)
        if saved is None:
            return its
        return replace(its, activation=saved, workspace=pass_bytes(self.work, kind, side.degrees, samples))

    def kinds(self, side: Side) -> dict[Kind, tuple[float, float, Held]]:
        """Forward, backward and what is held, per kind of part."""
        if side not in self._kinds:
            self._kinds[side] = self._make_kinds(side)
        return self._kinds[side]

    def _make_kinds(self, side: Side) -> dict[Kind, tuple[float, float, Held]]:
        samples = self.samples // side.degrees.dp
        present: tuple[Kind, ...] = ("embedding", *dict.fromkeys(self.layer_kinds), "head")
        kinds = {
            kind: (
                self.costs.forward_s(side.group, kind, side.degrees, samples),
                self.costs.backward_s(side.group, kind, side.degrees, samples),
                self._held(side, kind, samples),
            )
            for kind in present
        }
        if self.relaxed:
            least = _least([kinds[kind] for kind in dict.fromkeys(self.layer_kinds)])
            kinds |= dict.fromkeys(self.layer_kinds, least)
        return kinds

    def _make_parts(self, side: Side) -> Parts:
        kinds = self.kinds(side)
        each = {
            kind: (forward_s, backward_s, its.dense, its.experts, its.activation, its.entry)
            for kind, (forward_s, backward_s, its) in kinds.items()
        }
        columns = zip(*(each[kind] for kind in self.layer_kinds), strict=True)
        return Parts(kinds, *(tuple(accumulate(column, initial=0.0)) for column in columns))


def layer_kinds(shape: ModelShape) -> tuple[Kind, ...]:
    """The kind of every decoder layer of a model."""
    return tuple("experts" if shape.has_experts(layer) else "dense" for layer in range(shape.layers))


def _least(parts: list[tuple[float, float, Held]]) -> tuple[float, float, Held]:
    helds = [astuple(its) for _, _, its in parts]
    return (
        min(part[0] for part in parts),
        min(part[1] for part in parts),
        Held(*(min(values) for values in zip(*helds, strict=True))),
    )


def pinned_layers(pinned: tuple[Recompute, ...], num_layers: int) -> int:
    """Layers that a given recompute repeats at most; attention alone is the kernels' business and counts as none."""
    full = [part for part in pinned if part.granularity == "full"]
    if any(part.method == "uniform" for part in full):
        return num_layers
    return min(num_layers, max((part.num_layers or 0 for part in full), default=0))
