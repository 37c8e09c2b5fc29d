"""What is expected of a plan, and why it is the one: bottleneck, idle shares, what binds, what others would do."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import inf
from typing import Any

from flagvega.errors import NoPlanError
from flagvega.model.work import model_flops
from flagvega.plan.chunks import cost_stages, pipeline_of
from flagvega.plan.interleaved import Interleaved, run_schedule, schedule_period_s
from flagvega.plan.search import search
from flagvega.plan.simulate import Pipeline
from flagvega.plan.space import Candidate, Problem
from flagvega.plan.stages import StageCost, Work

MIN_ALONE_S = 2.0
"""A poor plan of one kind of chip would flatter the mix."""
_NEARLY_FULL = 0.95


@dataclass(frozen=True)
class Outlook:
    """A candidate, costed and simulated."""

    candidate: Candidate
    stages: tuple[StageCost, ...]
    pipeline: Pipeline
    total_s: float
    finish_s: tuple[float, ...]

    @property
    def idle(self) -> tuple[float, ...]:
        """Share of the step in which each stage computes nothing."""
        m = self.pipeline.num_micro_batches
        busy = (m * stage.time_s + stage.optimizer_s for stage in self.stages)
        return tuple(max(0.0, 1 - its / self.total_s) for its in busy)


@dataclass(frozen=True)
class Other:
    """Another layout, for comparison."""

    name: str
    total_s: float
    """Infinite where it does not fit."""
    why: str


def look_at(candidate: Candidate, problem: Problem) -> Outlook:
    """Cost and simulate a candidate."""
    return outlook_of(candidate, problem, cost_stages(candidate, problem.stage_costs(candidate.samples)))


def outlook_of(candidate: Candidate, problem: Problem, stages: tuple[StageCost, ...]) -> Outlook:
    """Simulate a candidate whose stages are costed."""
    costs = problem.stage_costs(candidate.samples)
    pipeline = pipeline_of(candidate, costs, stages)
    simulated = run_schedule(pipeline)
    return Outlook(candidate, stages, pipeline, simulated.total_s, simulated.finish_s)


def predict(outlook: Outlook, problem: Problem, bound_s: float | None = None) -> dict[str, Any]:
    """The predictions of a plan, as JSON."""
    work, groups = problem.work, problem.machine.groups
    flops = model_flops(work.shape, work.seq, work.global_batch)
    sides = [side for side, _ in outlook.candidate.stages]
    peak = sum(side.degrees.size * groups[side.group].flops_per_s for side in sides)
    source, assumed = problem.costs.tell(sides, outlook.candidate.samples)
    found: dict[str, Any] = {
        "iteration_s": outlook.total_s,
        "tokens_per_s": work.global_batch * work.seq / outlook.total_s,
        "mfu": flops / outlook.total_s / peak,
        "num_micro_batches": outlook.pipeline.num_micro_batches,
        "period_s": schedule_period_s(outlook.pipeline),
        "source": source,
        "assumed": [*problem.machine.assumed, *assumed],
        "stages": [
            {
                "forward_s": stage.forward_s,
                "backward_s": stage.backward_s,
                "reduction_s": stage.reduction_s,
                "optimizer_s": stage.optimizer_s,
                "idle_share": idle,
                "recomputed_layers": stage.recomputed,
                "memory_bytes": {**asdict(stage.memory), "total": stage.memory.total},
                "memory_limit_bytes": groups[side.group].memory_bytes,
                **({"chunks": [asdict(chunk) for chunk in stage.chunks]} if stage.chunks else {}),
            }
            for stage, idle, side in zip(outlook.stages, outlook.idle, sides, strict=True)
        ],
        "boundaries": [{"transfer_s": transfer_s} for transfer_s in outlook.pipeline.transfer],
    }
    if isinstance(outlook.pipeline, Interleaved):
        found["wrap_s"] = outlook.pipeline.wrap_s
    price = sum(side.degrees.size * groups[side.group].price_per_hour for side in sides)
    if price:
        found["price_per_hour"] = price
    if bound_s is not None:
        found |= {"bound_s": bound_s, "gap": max(0.0, outlook.total_s / bound_s - 1)}
    return found


def binding(outlook: Outlook, problem: Problem) -> str:
    """What keeps the step from being faster, in words."""
    times = [stage.time_s for stage in outlook.stages]
    slowest = max(range(len(times)), key=times.__getitem__)
    groups = problem.machine.groups
    name = f"stage {slowest} ({groups[outlook.candidate.stages[slowest][0].group].chip})"
    if schedule_period_s(outlook.pipeline) > 1.02 * times[slowest]:
        worst = max(range(len(outlook.pipeline.transfer)), key=outlook.pipeline.transfer.__getitem__)
        return f"the boundary between stages {worst} and {worst + 1}"
    recomputing = [i for i, stage in enumerate(outlook.stages) if stage.recomputed]
    if slowest in recomputing:
        again = f"{outlook.stages[slowest].recomputed} of its layers are computed again"
        chosen = problem.choices.recompute is None
        return f"the memory of {name}: {again} to fit" if chosen else f"the computation of {name}: {again}"
    full = [
        i
        for i, stage in enumerate(outlook.stages)
        if stage.memory.total > _NEARLY_FULL * groups[outlook.candidate.stages[i][0].group].memory_bytes
    ]
    if full and slowest not in full:
        return f"the computation of {name}; the memory of stage {full[0]} is full and takes no more of it"
    return f"the computation of {name}"


def others(outlook: Outlook, problem: Problem, time_s: float) -> list[Other]:
    """The plain splits over the same meshes, and the best plan of every kind of chip alone, found within a time."""
    layers = problem.work.shape.layers
    sides = [side for side, _ in outlook.candidate.stages]
    found = []
    if len(sides) > 1:
        peaks = [side.degrees.size * problem.machine.groups[side.group].flops_per_s for side in sides]
        found.append(_split("even split over these meshes", [1.0] * len(sides), outlook, problem, layers))
        found.append(_split("split by peak FLOP/s over these meshes", peaks, outlook, problem, layers))
    if len(problem.machine.groups) > 1:
        for i, group in enumerate(problem.machine.groups):
            found.append(_alone(problem, i, group.chip, max(MIN_ALONE_S, time_s / len(problem.machine.groups))))
    return found


def _split(name: str, weights: list[float], outlook: Outlook, problem: Problem, layers: int) -> Other:
    counts = apportion(weights, layers)
    is_plain = outlook.candidate.num_chunks == 1
    if is_plain and counts == [work.num_layers for _, work in outlook.candidate.stages]:
        return Other(name, outlook.total_s, "the same split")
    begin, stages = 0, []
    for i, ((side, _), count) in enumerate(zip(outlook.candidate.stages, counts, strict=True)):
        stages.append((side, Work(begin, begin + count, i == 0, i == len(counts) - 1)))
        begin += count
    other = look_at(replace(outlook.candidate, stages=tuple(stages)), problem)
    for i, (stage, (side, _)) in enumerate(zip(other.stages, stages, strict=True)):
        limit = problem.machine.groups[side.group].memory_bytes
        if stage.memory.total > limit:
            return Other(name, inf, f"stage {i} needs {stage.memory.total / limit:.2f} x its memory")
    return Other(name, other.total_s, f"limited by {binding(other, problem)}")


def apportion(weights: list[float], total: int) -> list[int]:
    """Whole shares of a total in proportion to weights, largest remainders first."""
    exact = [weight * total / sum(weights) for weight in weights]
    counts = [int(share) for share in exact]
    order = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in order[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _alone(problem: Problem, group: int, chip: str, time_s: float) -> Other:
    """The best plan without any other kind of chip."""
    groups = problem.machine.groups
    empty = tuple(its if i == group else replace(its, per_node=(0,)) for i, its in enumerate(groups))
    kept = tuple(mesh for mesh in problem.choices.kept if mesh.chip == chip)
    choices = replace(problem.choices, kept=kept)
    alone = replace(problem, machine=replace(problem.machine, groups=empty), choices=choices)
    name = f"{groups[group].count} x {chip} alone"
    try:
        found = search(alone, lambda candidate: True, time_s)
    except NoPlanError:
        return Other(name, inf, "no plan was found in the time there was")
    if found is None:
        return Other(name, inf, "no plan: the model does not fit")
    num_stages = len(found.candidate.stages)
    unproven = f"; a longer search may find one up to {found.gap:.0%} faster" if found.gap else ""
    return Other(name, found.total_s, f"{num_stages} stage{'s' * (num_stages > 1)}{unproven}")
