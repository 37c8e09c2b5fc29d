"""Plans that contradict themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from flagvega.cluster.nodes import Cluster, Node
from flagvega.layout.build import build_plan
from flagvega.layout.check import check_plan
from flagvega.layout.plan import Boundary, Chunk, Mesh, Plan, Recompute, Replica, Stage
from flagvega.layout.request import LayoutRequest, MeshRequest

CLUSTER = Cluster((Node("a", ("big",) * 4), Node("b", ("small",) * 4)))
MESHES = (MeshRequest(tp=2, dp=2, chip="big"), MeshRequest(dp=2, pp=2, chip="small"))
PLAN = build_plan(LayoutRequest(MESHES, 6, 2, 512), CLUSTER)


def mesh(plan: Plan, i: int, **changes: object) -> Plan:
    """The plan with one mesh changed."""
    meshes: list[Mesh] = list(plan.meshes)
    meshes[i] = replace(meshes[i], **changes)  # type: ignore[arg-type]
    return replace(plan, meshes=tuple(meshes))


def stage(plan: Plan, i: int, **changes: object) -> Plan:
    """The plan with one stage changed."""
    stages: list[Stage] = list(plan.stages)
    stages[i] = replace(stages[i], **changes)  # type: ignore[arg-type]
    return replace(plan, stages=tuple(stages))


def chunk(plan: Plan, i: int, **changes: object) -> Plan:
    """The plan with one chunk changed."""
    chain: list[Chunk] = list(plan.chain)
    chain[i] = replace(chain[i], **changes)  # type: ignore[arg-type]
    return replace(plan, chain=tuple(chain))


def boundary(plan: Plan, i: int, value: Boundary) -> Plan:
    """The plan with one boundary changed."""
    boundaries = list(plan.boundaries)
    boundaries[i] = value
    return replace(plan, boundaries=tuple(boundaries))


SPOILT: dict[str, tuple[Callable[[Plan], Plan], str]] = {
    "no mesh": (lambda p: replace(p, meshes=()), "at least one mesh"),
    "mesh id": (lambda p: mesh(p, 1, id=0), "id 0 of the mesh at position 1"),
    "degree of zero": (lambda p: mesh(p, 0, tp=0), "tp is 0"),
    "devices": (lambda p: mesh(p, 0, devices=p.meshes[0].devices[:3]), "3 devices are no whole number of stages"),
    "ep": (lambda p: mesh(p, 0, ep=8), "etp 2 x ep 8 = 16 does not divide tp 2 x cp 1 x dp 2 = 4"),
    "sp": (lambda p: mesh(p, 1, sp=True), "sequence parallelism needs tp of at least 2"),
    "device twice": (
        lambda p: mesh(p, 1, devices=(*p.meshes[1].devices[:3], (0, 0))),
        "device 0 of node 0 is used 2 times",
    ),
    "gap": (
        lambda p: mesh(p, 1, devices=(*p.meshes[1].devices[:3], (1, 7))),
        "node 1 uses devices [0, 1, 2, 7], which are not numbered from 0 without gaps",
    ),
    "stage missing": (lambda p: replace(p, stages=p.stages[:2]), "2 stages, but the meshes' devices hold 3"),
    "stage on another mesh": (lambda p: stage(p, 1, replicas=(Replica(0, 2, 2),)), "it is on mesh 1"),
    "dp": (lambda p: stage(p, 1, replicas=(Replica(1, 4, 1),)), "dp 4, but its mesh has dp 2"),
    "samples": (lambda p: stage(p, 1, replicas=(Replica(1, 2, 1),)), "= 2 samples, but the batch has 4"),
    "recompute ends": (lambda p: stage(p, 0, recompute=(Recompute(until=3),)), "the last entry, and only it"),
    "recompute order": (
        lambda p: stage(p, 0, recompute=(Recompute(until=3), Recompute(until=2), Recompute())),
        "ends are in ascending order",
    ),
    "recompute method": (lambda p: stage(p, 0, recompute=(Recompute("full"),)), "has a method and a number of layers"),
    "chain order": (lambda p: chunk(p, 1, stage=2), "the chain visits stages [0, 2, 2]"),
    "hole in layers": (lambda p: chunk(p, 1, layers=(3, 4)), "layers [3, 4] do not follow layer 2"),
    "layers backwards": (lambda p: chunk(p, 2, layers=(4, 3)), "layers [4, 3] do not follow"),
    "embedding": (lambda p: chunk(p, 1, embedding=True), "the first chunk, and only it, has the embedding"),
    "head": (lambda p: chunk(p, 2, head=False), "the last chunk, and only it, has the head"),
    "schedule": (lambda p: replace(p, schedule="interleaved"), "1 chunks a stage, but schedule interleaved"),
    "boundaries": (lambda p: replace(p, boundaries=p.boundaries[:1]), "1 boundaries between 3 stages"),
    "transport": (lambda p: boundary(p, 0, Boundary("native")), "a native transport cannot join big and small"),
    "chunk bytes": (lambda p: boundary(p, 0, Boundary("bridge", chunk_bytes=-1)), "chunk_bytes is -1"),
    "wire": (lambda p: boundary(p, 0, Boundary("bridge", "int8")), "wire_dtype is int8"),
    "in flight": (lambda p: stage(p, 0, in_flight=9), "in_flight is 9, but the schedule holds 4"),
    "slow and in flight": (lambda p: boundary(p, 0, Boundary("bridge")), "in_flight is 4, but the schedule holds 3"),
}


def test_a_plan_that_was_built_is_consistent() -> None:
    assert check_plan(PLAN) == []


@pytest.mark.parametrize("name", SPOILT)
def test_every_rule_that_a_plan_breaks_is_named(name: str) -> None:
    spoil, expected = SPOILT[name]
    faults = check_plan(spoil(PLAN))
    assert expected in "\n".join(map(str, faults))
    assert all(fault.where.startswith("plan decisions") for fault in faults)


def test_an_interleaved_schedule_runs_in_one_mesh() -> None:
    twice = tuple(
        replace(chunk, layers=(chunk.layers[0] + shift, chunk.layers[1] + shift), embedding=not i and not shift)
        for shift in (0, 6)
        for i, chunk in enumerate(PLAN.chain)
    )
    text = "\n".join(map(str, check_plan(replace(PLAN, chain=twice, schedule="interleaved"))))
    assert "an interleaved schedule runs in one mesh" in text
