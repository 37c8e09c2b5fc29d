"""Random small planning problems: a few devices of a few kinds."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from flagvega.model.shape import Experts, ModelShape
from flagvega.model.workload import Choices, Workload
from flagvega.plan.analytic import AnalyticCosts
from flagvega.plan.costs import Degrees, Side
from flagvega.plan.machine import Group, Link, Machine
from flagvega.plan.memory import CONTEXT_SHARE, held
from flagvega.plan.space import Problem
from flagvega.plan.stages import Work


def draw(seed: int, max_layers: int = 6, max_devices: int = 3) -> Problem:
    rng = random.Random(seed)
    layers = rng.randint(2, max_layers)
    experts = Experts(num=4, topk=2, ffn=512, layers=tuple(range(1, layers))) if rng.random() < 0.25 else None
    shape = ModelShape(layers, 512, 8, 4, 64, 1408, 32000, tied=rng.random() < 0.3, experts=experts)
    global_batch = rng.choice([4, 6, 8])
    work = Workload(shape, 1024, "bf16", global_batch, global_batch, 4, 12, overlap_reduction=rng.random() < 0.5)
    whole = sum(held(work, "dense", Degrees(), 1).dense for _ in range(layers)) * 18
    groups = tuple(
        Group(
            f"chip-{i}", (rng.randint(1, max_devices),),
            memory_bytes=int(rng.uniform(0.25, 1.2) * whole + 2e9) if rng.random() < 0.6 else 10**12,
            flops_per_s=rng.uniform(0.3, 1.0) * 1e14,
            memory_bytes_per_s=rng.uniform(0.5, 2.0) * 1e12,
            link=Link(1e-5, rng.choice([2e10, 2e11])),
            network=Link(5e-5, rng.choice([1e8, 1e9, 1e10])),
        )
        for i in range(rng.choice([2, 2, 3]))
    )  # fmt: skip
    machine = Machine(groups)
    sharded = rng.random() < 0.5
    choices = Choices(distributed_optimizer=sharded, sp=(True,), etp=(1,) if experts else None)
    return Problem(machine, work, choices, AnalyticCosts(work, machine, sharded), lambda side: True)


SIZES = ((6, 12), (4, 24), (6, 12), (4, 24), (5, 16), (3, 24), (5, 8), (7, 8), (4, 6))
"""Devices, which are the most stages that there can be, and layers."""


def draw_wide(seed: int, most_plans: int, count: Callable[[Problem, int], int]) -> Problem | None:
    """Two to four kinds of chips, up to 24 layers, memory binding in about half; pinned until the plans are few enough.

    None when they are too many with all those pins, or fewer than two.
    """
    rng = random.Random(seed)
    devices, layers = rng.choice(SIZES)
    kinds = rng.choice([kinds for kinds in (2, 3, 4) if kinds <= devices])
    counts = [1] * kinds
    for _ in range(devices - kinds):
        counts[rng.randrange(kinds)] += 1
    experts = Experts(num=4, topk=2, ffn=512, layers=tuple(range(1, layers))) if rng.random() < 0.2 else None
    shape = ModelShape(layers, 512, 8, 4, 64, 1408, 32000, tied=rng.random() < 0.3, experts=experts)
    global_batch = rng.choice([4, 6, 8, 12, 16])
    unit = rng.choice([1, 1, 2, global_batch])
    work = Workload(shape, 1024, "bf16", global_batch, unit, 4, 12, overlap_reduction=rng.random() < 0.5)
    groups = tuple(
        Group(
            f"chip-{i}", (number,), 10**15,
            flops_per_s=rng.uniform(0.3, 1.0) * 1e14,
            memory_bytes_per_s=rng.uniform(0.5, 2.0) * 1e12,
            link=Link(1e-5, rng.choice([2e10, 2e11])),
            network=Link(5e-5, rng.choice([1e8, 1e9, 1e10])),
        )
        for i, number in enumerate(counts)
    )  # fmt: skip
    choices = Choices(distributed_optimizer=rng.random() < 0.5, sp=(True,), etp=(1,) if experts else None)
    problem = _problem(Machine(groups), work, choices)
    tightness = [rng.uniform(0.5, 1.1) if rng.random() < 0.8 else 10.0 for _ in groups]
    problem = _problem(_with_memory(problem, devices, tightness), work, choices)
    pins: list[dict[str, object]] = [{"slow_boundaries": False}, {"tp": (1,)},
                                     {"order": tuple(group.chip for group in groups)}]  # fmt: skip
    rng.shuffle(pins)
    for pin in [{}, *pins]:
        choices = replace(choices, **pin)  # type: ignore[arg-type]
        problem = _problem(problem.machine, work, choices)
        number = count(problem, most_plans)
        if number <= most_plans:
            return problem if number > 1 else None
    return None


def _problem(machine: Machine, work: Workload, choices: Choices) -> Problem:
    return Problem(machine, work, choices, AnalyticCosts(work, machine, choices.distributed_optimizer), lambda _: True)


def _with_memory(problem: Problem, devices: int, tightness: list[float]) -> Machine:
    """Memory as so many times what an even share of the layers takes, with a few micro-batches in flight."""
    costs = problem.stage_costs(1)
    share = Work(0, -(-problem.work.shape.layers // devices), embedding=True, head=True)
    groups = []
    for i, group in enumerate(problem.machine.groups):
        memory = costs.extremes(Side(i, Degrees()), share)[0].memory
        needed = memory.total - memory.context + 2 * memory.activations
        groups.append(replace(group, memory_bytes=int(tightness[i] * needed / (1 - CONTEXT_SHARE))))
    return replace(problem.machine, groups=tuple(groups))
