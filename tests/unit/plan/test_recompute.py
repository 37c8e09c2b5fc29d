"""Recompute that the YAML asks for: what it costs and what it saves."""

from __future__ import annotations

from typing import Any

import pytest

from backends.megatron.offer import read_workload
from flagvega.layout.plan import Recompute
from flagvega.model.shape import ModelShape
from flagvega.model.workload import Choices, Workload
from flagvega.plan.analytic import AnalyticCosts
from flagvega.plan.costs import Degrees, Side
from flagvega.plan.machine import Group, Link, Machine
from flagvega.plan.space import Problem
from flagvega.plan.stages import StageCost, Work
from tests.unit.backends.conftest import make

WORK = Workload(ModelShape(8, 1024, 16, 16, 64, 4096, 32000), 1024, "bf16", 8, 8, 4, 12)
MACHINE = Machine((Group("a", (8,), 80 * 2**30, 3e14, 2e12, Link(1e-5, 3e11), Link(5e-5, 2.5e10)),))


def stage(recompute: tuple[Recompute, ...]) -> StageCost:
    problem = Problem(MACHINE, WORK, Choices(recompute=recompute), AnalyticCosts(WORK, MACHINE, True), lambda _: True)
    return problem.stage_costs(1).stage(Side(0, Degrees()), Work(0, 8, False, False), 2)


def test_uniform_recompute_of_more_layers_at_once_keeps_fewer_inputs_and_holds_more_layers() -> None:
    none, one, four = (stage(parts) for parts in ((), *(((Recompute("full", "uniform", n),)) for n in (1, 4))))
    an_input = 1024 * 1024 * 2
    assert one.memory.activations - four.memory.activations == 2 * (8 - 2) * an_input
    assert four.memory.workspace == 4 * one.memory.workspace
    assert one.backward_s == four.backward_s > none.backward_s
    assert one.recomputed == four.recomputed == 8


@pytest.mark.parametrize(
    ("arguments", "repeats"),
    [
        ({"recompute_granularity": "selective"}, True),
        ({"recompute_activations": True}, True),
        ({"recompute_granularity": "selective", "recompute_modules": ["mlp"]}, False),
        ({"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}, False),
        ({}, False),
    ],
)
def test_selective_recompute_repeats_attention(arguments: dict[str, Any], repeats: bool) -> None:
    assert read_workload(make(**arguments)).kernels.repeats_attention is repeats
