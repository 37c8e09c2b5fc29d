"""What a stage is said to take and to hold, whatever its costs come from."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from flagvega.model.shape import ModelShape
from flagvega.model.workload import Choices, Workload
from flagvega.plan.analytic import AnalyticCosts
from flagvega.plan.costs import Costs, Degrees, Kind, Side
from flagvega.plan.machine import Group, Link, Machine
from flagvega.plan.space import Problem
from flagvega.plan.stages import StageCosts, Work

WORK = Workload(ModelShape(4, 128, 4, 4, 32, 352, 512), 64, "fp32", 8, 8, 4, 8)
LINK = Link(1e-5, 5e8)
MACHINE = Machine(tuple(Group(chip, (1,), 10**9, 1e10, 4e9, LINK, LINK) for chip in ("a", "b")))
A, B = (Side(group, Degrees()) for group in (0, 1))


@dataclass
class OneSided(AnalyticCosts):
    """Messages from a take 3 s, those from b 1 s."""

    def transfer_s(self, sender: Side, receiver: Side, samples: int) -> float:
        return 3.0 if sender == A else 1.0


@dataclass
class Counted(AnalyticCosts):
    """Saved bytes were measured: a million for each part."""

    def activation_bytes(self, group: int, kind: Kind, degrees: Degrees, samples: int) -> float | None:
        return 1e6


def stage_costs(costs: Costs, samples: int = 2) -> StageCosts:
    return Problem(MACHINE, WORK, Choices(), costs, lambda _: True).stage_costs(samples)


def test_a_boundary_takes_the_mean_of_both_ways() -> None:
    costs = stage_costs(OneSided(WORK, MACHINE, True))
    assert costs.transfer_s(A, B) == costs.transfer_s(B, A) == 2.0


@pytest.mark.parametrize("layers", [1, 3])
def test_measured_activations_leave_room_for_the_gradients_of_one_mlp(layers: int) -> None:
    memory = stage_costs(Counted(WORK, MACHINE, True)).stage(A, Work(0, layers, False, False), 2).memory
    assert memory.activations == 2 * layers * 1e6
    branches = 2 if WORK.shape.gated else 1
    assert memory.workspace == (2 * branches + 1) * 352 * (2 * 64) * 4


def test_a_measured_head_needs_its_logits_once_more() -> None:
    memory = stage_costs(Counted(WORK, MACHINE, True)).stage(A, Work(4, 4, False, True), 1).memory
    assert (memory.activations, memory.workspace) == (1e6, 4 * 512 * 2 * 64)


def test_a_stage_of_the_embedding_alone_has_room_for_the_optimizers_step() -> None:
    memory = stage_costs(AnalyticCosts(WORK, MACHINE, False)).stage(A, Work(0, 0, True, False), 3).memory
    assert memory.workspace == 8 * 512 * 128
