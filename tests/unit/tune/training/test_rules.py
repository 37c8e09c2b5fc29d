"""Every rule, case by case: (what, a word of the reason, or nothing where it holds)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flagvega.layout.plan import Recompute
from flagvega.layout.request import MeshRequest
from flagvega.model.shape import ModelShape
from flagvega.model.workload import Workload
from flagvega.tune.training.facts import Facts
from flagvega.tune.training.needs import Need
from flagvega.tune.training.rules import batch, boundary, engine, host, idle, memory, recompute, stages, time, virtual
from flagvega.tune.training.shape import Point, Shape

WORK = Workload(ModelShape(8, 64, 4, 4, 16, 128, 256, tied=False), 128, "fp32", 8, 8, 4, 8)
FACTS = Facts(
    WORK,
    counts={"big": 4, "small": 2},
    node_sizes={"big": 4, "small": 2},
    refusal=lambda mesh: "4 heads do not split over tp 8" if mesh.tp == 8 else None,
    boundary=lambda a, b: "unlike cp" if a.cp != b.cp else None,
)
FULL = (Recompute("full", "block", 2),)


def mesh(chip: str = "big", tp: int = 1, dp: int = 1, pp: int = 1, cp: int = 1) -> MeshRequest:
    return MeshRequest(tp, cp, 1, dp, pp, None, False, chip)


@pytest.mark.parametrize(
    ("rule", "what", "says"),
    [
        (host, mesh(tp=4), None),
        (host, mesh(tp=8), "more than a host's 4"),
        (host, mesh("small", tp=4), "more than a host's 2"),
        (stages, mesh(pp=8), None),
        (stages, mesh(pp=9), "9 stages, but 8 layers"),
        (engine, mesh(tp=4), None),
        (engine, mesh(tp=8), "heads"),
    ],
)
def test_rules_of_meshes(rule, what, says):
    reason = rule.check(what, FACTS)

    assert (reason is None) if says is None else says in str(reason)


@pytest.mark.parametrize(
    ("rule", "what", "says"),
    [
        (batch, Shape((mesh(dp=4),), 2), None),
        (batch, Shape((mesh(dp=4),), 3), "12 samples of a micro-batch do not divide the step's 8"),
        (batch, Shape((mesh(dp=1), mesh("small", dp=2)), 1), "dp 2 does not divide 1 samples"),
        (batch, Shape((mesh(dp=1), mesh("small", dp=2)), 2), None),
        (boundary, Shape((mesh(), mesh("small")), 1), None),
        (boundary, Shape((mesh(cp=2), mesh("small")), 1), "unlike cp"),
        (idle, Shape((mesh(tp=4), mesh("small", dp=2)), 1), None),
        (idle, Shape((mesh(tp=2), mesh("small", dp=2)), 1), "2 of 4 big would work"),
        (idle, Shape((mesh(tp=4),), 1), "0 of 2 small would work"),
        (virtual, Shape((mesh(pp=4),), 1, 1), None),
        (virtual, Shape((mesh(pp=4),), 1, 2), None),
        (virtual, Shape((mesh(pp=4),), 1, 3), "8 layers do not make 12 chunks"),
        (virtual, Shape((mesh(pp=1),), 1, 2), "needs two stages"),
        (virtual, Shape((mesh(), mesh("small")), 1, 2), "one mesh"),
        (virtual, Shape((mesh(pp=4),), 4, 2), "2 micro-batches are no multiple of 4 stages"),
        (recompute, Shape((mesh(pp=4),), 1, recompute=FULL), None),
        (recompute, Shape((mesh(pp=8),), 1, recompute=FULL), "2 layers to be computed again, but a stage has 1"),
        (recompute, Shape((mesh(pp=8),), 1, recompute=None), None),
        (recompute, Shape((mesh(pp=2), mesh("small", pp=2)), 1, recompute=FULL), None),
    ],
)
def test_rules_of_layouts(rule, what, says):
    reason = rule.check(what, FACTS)

    assert (reason is None) if says is None else says in str(reason)


NEED = Need("big", 2, 1, 1, 2, False, 4, False, False, 2.0, 3, 1, False, 2)


@pytest.mark.parametrize(
    ("change", "is_pruned"),
    [
        ({}, True),
        ({"layers": 5}, True),
        ({"layers": 3}, False),
        ({"head": True}, True),
        ({"samples": 4.0, "in_flight": 4, "recomputed": 0}, True),
        ({"samples": 1.0, "layers": 9}, False),
        ({"in_flight": 2}, False),
        ({"recomputed": 2, "layers": 9}, False),
        ({"is_selective": True}, False),
        ({"shards": 1}, True),
        ({"shards": 4}, False),
        ({"chip": "small"}, False),
        ({"tp": 1, "etp": 1, "layers": 9}, False),
        ({"sp": True}, False),
    ],
)
def test_memory_dominates_only_where_nothing_is_less(change, is_pruned):
    """Of the other layers of a split, or of another mesh, an end for want of memory says nothing."""
    other = replace(NEED, layers=1, samples=0.5)

    assert (memory.check((other, replace(NEED, **change)), NEED) is not None) == is_pruned


def shaped(recomputed: int = 0, **changes: object) -> Point:
    again = (Recompute("full", "block", recomputed) if recomputed else Recompute(),)
    return Point((), replace(Shape((mesh(pp=2),), 1, recompute=again), **changes), (4, 4))


@pytest.mark.parametrize(
    ("point", "recomputed", "is_pruned"),
    [
        (shaped(2), 2, True),
        (shaped(0), 0, False),
        (replace(shaped(2), split=(5, 3)), 2, False),
        (shaped(2, micro_batch_size=2), 2, False),
        (replace(shaped(2), settings=(("overlap", True),)), 2, False),
    ],
)
def test_more_recompute_than_a_trial_that_fitted_is_no_faster(point, recomputed, is_pruned):
    tried = (replace(NEED, recomputed=0),) * 2
    needs = (replace(NEED, recomputed=recomputed),) * 2

    assert (time.check(point, needs, shaped(), tried) is not None) == is_pruned
