"""Random small planning problems: a few devices of a few kinds, memory binding in half of them."""

from __future__ import annotations

import random

from flagvega.model.shape import Experts, ModelShape
from flagvega.model.workload import Choices, Workload
from flagvega.plan.analytic import AnalyticCosts
from flagvega.plan.costs import Degrees
from flagvega.plan.machine import Group, Link, Machine
from flagvega.plan.memory import held
from flagvega.plan.space import Problem


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
