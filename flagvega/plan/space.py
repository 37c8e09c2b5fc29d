"""What the planner may choose from: kinds of chips, degrees, batches; and one choice, ready to be costed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from flagvega.model.workload import Choices, KeptMesh, Workload
from flagvega.plan.costs import Costs, Degrees, Side
from flagvega.plan.machine import Machine
from flagvega.plan.simulate import Pipeline
from flagvega.plan.stages import StageCost, StageCosts, Work, layer_kinds

LONG_SEQUENCE = 16384
"""Samples from this length on are cut over cp too, where cp is open."""


@dataclass(frozen=True)
class Problem:
    """A planning problem; ``is_legal`` is the engine's word on degrees."""

    machine: Machine
    work: Workload
    choices: Choices
    costs: Costs
    is_legal: Callable[[Side], bool]
    objective: Literal["time", "cost"] = "time"
    """What the best plan has least of: seconds of a step, or their price."""

    @cached_property
    def kept(self) -> dict[int, KeptMesh]:
        """By group: meshes that every plan has."""
        chips = [group.chip for group in self.machine.groups]
        return {chips.index(mesh.chip): mesh for mesh in self.choices.kept if mesh.chip in chips}

    def devices(self, group: int) -> int:
        """Devices of a group that a plan may use."""
        if group in self.kept:
            mesh = self.kept[group]
            return mesh.tp * mesh.cp * mesh.dp * mesh.pp
        return self.machine.groups[group].count

    def may_follow(self, group: int, other: int) -> bool:
        """Whether stages on another kind of chip may come right behind those on a group."""
        order = self.choices.order
        if order is None:
            return True
        first, second = (order.index(self.machine.groups[i].chip) for i in (group, other))
        return first < second

    def may_begin(self, side: Side, samples: int) -> bool:
        """Whether a side may hold the first stage."""
        return self.choices.micro_batch_size in (None, samples // side.degrees.dp)

    def may_stand(self, in_flight: int, place: int, num_kinds: int) -> bool:
        """Whether the number of stages, where it is given, lets one keep so many micro-batches in flight.

        ``place`` is 1 for the first stage; so many other kinds of chips may follow. Each stage has one more in flight
        than the next, and another one over a boundary between unlike chips where those may be slow.
        """
        if self.choices.num_stages is None:
            return True
        behind = self.choices.num_stages - place
        most_slow = min(behind, num_kinds) if self.choices.slow_boundaries else 0
        return behind <= in_flight - 1 <= behind + most_slow

    def stage_costs(self, samples: int, relaxed: bool = False) -> StageCosts:
        """Costs of stages for one number of samples in a global micro-batch."""
        choices = self.choices
        return StageCosts(
            self.costs, self.work, self.machine, samples, choices.distributed_optimizer, choices.recompute, relaxed
        )


@dataclass(frozen=True)
class Candidate:
    """One layout: every stage in pipeline order, and which boundaries keep one more micro-batch in flight."""

    samples: int
    stages: tuple[tuple[Side, Work], ...]
    slow: tuple[int, ...]

    @property
    def num_chunks(self) -> int:
        """Chunks of every stage; several are an interleaved schedule."""
        return 1 + len(self.stages[0][1].later)

    def in_flight(self, stage: int) -> int:
        """Micro-batches that a stage may hold; interleaved, pairs of micro-batch and chunk."""
        if self.num_chunks > 1:
            return 2 * (len(self.stages) - 1 - stage) + (self.num_chunks - 1) * len(self.stages) + 1
        return len(self.stages) - stage + sum(boundary >= stage for boundary in self.slow)


def cost_candidate(candidate: Candidate, costs: StageCosts) -> tuple[StageCost, ...]:
    """The cost of every stage."""
    return tuple(costs.stage(side, work, candidate.in_flight(i)) for i, (side, work) in enumerate(candidate.stages))


def make_pipeline(candidate: Candidate, costs: StageCosts, stages: tuple[StageCost, ...]) -> Pipeline:
    """What the simulation runs."""
    sides = [side for side, _ in candidate.stages]
    return Pipeline(
        tuple(stage.forward_s for stage in stages),
        tuple(stage.backward_s for stage in stages),
        tuple(costs.transfer_s(a, b) for a, b in zip(sides, sides[1:], strict=False)),
        tuple(candidate.in_flight(i) for i in range(len(stages))),
        costs.num_micro_batches,
        tuple(stage.reduction_s for stage in stages),
        tuple(stage.optimizer_s for stage in stages),
    )


def batch_sizes(problem: Problem) -> list[int]:
    """Samples that a global micro-batch may have: divisors of every step's batch, largest number last."""
    unit = problem.work.batch_unit
    limit = sum(group.count for group in problem.machine.groups) * 64
    return [size for size in range(1, min(unit, limit) + 1) if unit % size == 0]


def sides(problem: Problem, samples: int, costs: StageCosts | None = None) -> list[Side]:
    """Every legal way of holding a stage, those that another beats in everything left out.

    ``costs`` are those for so many samples, where they exist already.
    """
    costs = costs or problem.stage_costs(samples)
    found: list[Side] = []
    for group in range(len(problem.machine.groups)):
        by_size: dict[int, list[Side]] = {}
        for degrees in _degrees(problem, group, samples):
            by_size.setdefault(degrees.size, []).append(Side(group, degrees))
        for alike in by_size.values():
            found += _undominated(problem, costs, alike)
    return found


def most_stages(problem: Problem) -> dict[int, int]:
    """Stages that there is room for, each on the smallest legal block, by group; without groups that hold none."""
    found = {}
    for group in range(len(problem.machine.groups)):
        # The dp of the whole batch are all that there are.
        sizes = [degrees.size for degrees in _degrees(problem, group, problem.work.batch_unit)]
        if sizes:
            found[group] = problem.devices(group) // min(sizes)
    return found


def _degrees(problem: Problem, group: int, samples: int) -> Iterator[Degrees]:
    its, choices, shape = problem.machine.groups[group], problem.choices, problem.work.shape
    if choices.order is not None and its.chip not in choices.order:
        return
    if group in problem.kept:
        yield from _kept(problem, group, samples)
        return
    experts = shape.experts.num if shape.experts is not None else 1
    cps = choices.cp or ((1, 2, 4, 8) if problem.work.seq >= LONG_SEQUENCE else (1,))
    for tp in choices.tp or _powers(its.node_size):
        if tp > min(its.node_size, choices.max_tp or tp):
            continue
        for cp in cps:
            for dp in (size for size in range(1, its.count // (tp * cp) + 1) if samples % size == 0):
                for ep in choices.ep or [ep for ep in _powers(experts) if experts % ep == 0]:
                    for etp in choices.etp or dict.fromkeys((tp, 1) if experts > 1 else (tp,)):
                        yield from _first_legal(problem, group, Degrees(tp, cp, ep, etp, dp))


def _kept(problem: Problem, group: int, samples: int) -> Iterator[Degrees]:
    its = problem.kept[group]
    if samples % its.dp == 0 and problem.devices(group) <= problem.machine.groups[group].count:
        yield from _first_legal(problem, group, Degrees(its.tp, its.cp, its.ep, its.etp, its.dp))


def _first_legal(problem: Problem, group: int, degrees: Degrees) -> Iterator[Degrees]:
    if degrees.size % (degrees.ep * degrees.etp):
        return
    for sp in problem.choices.sp if degrees.tp > 1 else (False,):
        found = Degrees(degrees.tp, degrees.cp, degrees.ep, degrees.etp, degrees.dp, sp)
        if problem.is_legal(Side(group, found)):
            yield found
            return


def _powers(limit: int) -> list[int]:
    return [2**i for i in range(limit.bit_length()) if 2**i <= limit]


def _undominated(problem: Problem, costs: StageCosts, alike: list[Side]) -> list[Side]:
    """Of sides of one size, those that no other equals or beats in every time and every byte."""
    vectors = [_vector(problem, costs, side) for side in alike]
    kept: list[int] = []
    for i, vector in enumerate(vectors):
        beaten = any(
            all(x <= y for x, y in zip(other, vector, strict=True)) and (other != vector or j < i)
            for j, other in enumerate(vectors)
            if j != i
        )
        if not beaten:
            kept.append(i)
    return [alike[i] for i in kept]


def _vector(problem: Problem, costs: StageCosts, side: Side) -> list[float]:
    numbers: list[float] = [costs.transfer_s(side, side)]
    kinds = ["embedding", *dict.fromkeys(layer_kinds(problem.work.shape)), "head"]
    for kind, (forward_s, backward_s, its) in costs.kinds(side).items():
        if kind not in kinds:
            continue
        numbers += [forward_s, backward_s, its.dense + its.experts, its.activation, its.entry, its.workspace]
        numbers.append(problem.costs.reduction_s(side.group, side.degrees, its.dense, its.experts, 0.0))
        numbers.append(problem.costs.optimizer_s(side.group, side.degrees, its.dense, its.experts))
        replicas, expert_replicas = side.degrees.replicas
        numbers.append(its.dense / replicas + its.experts / expert_replicas)
    return numbers
