"""Between candidates and plans: the planner's choice as a layout that ranks can read, and back."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import groupby

from flagvega.cluster.nodes import Cluster, Node
from flagvega.layout.plan import Plan, Recompute
from flagvega.layout.request import LayoutRequest, MeshRequest
from flagvega.plan.costs import Degrees, Side
from flagvega.plan.machine import Machine
from flagvega.plan.space import Candidate
from flagvega.plan.stages import StageCost, Work


def used_part(candidate: Candidate, machine: Machine, cluster: Cluster) -> Cluster:
    """The cluster without the devices that the candidate leaves idle; hosts keep their numbers."""
    left = Counter[str]()
    for side, _ in candidate.stages:
        left[machine.groups[side.group].chip] += side.degrees.size
    nodes = []
    for node in cluster.nodes:
        kept = []
        for chip in node.devices:
            if left[chip] > 0:
                left[chip] -= 1
                kept.append(chip)
        nodes.append(Node(node.host, tuple(kept)))
    return Cluster(tuple(nodes))


def make_request(candidate: Candidate, stages: tuple[StageCost, ...], machine: Machine, layout: LayoutRequest,
                 distributed_optimizer: bool, pinned: tuple[Recompute, ...] | None) -> LayoutRequest:  # fmt: skip
    """The layout that a candidate describes."""
    meshes = []
    for side, run in groupby(candidate.stages, key=lambda stage: stage[0]):
        its = side.degrees
        chip = machine.groups[side.group].chip
        num_stages = len(list(run))
        meshes.append(MeshRequest(its.tp, its.cp, its.ep, its.dp, num_stages, its.etp, its.sp, chip))
    return replace(
        layout,
        meshes=tuple(meshes),
        micro_batch_size=candidate.samples // meshes[0].dp if meshes[0].dp else candidate.samples,
        layer_split=_split(candidate),
        virtual_stages=candidate.num_chunks,
        distributed_optimizer=distributed_optimizer,
        recompute=tuple(_recompute(stage, pinned) for stage in stages),
        slow_boundaries=candidate.slow,
    )


def read_candidate(plan: Plan, machine: Machine) -> Candidate:
    """The candidate that a plan is."""
    chips = [group.chip for group in machine.groups]
    stages = []
    num = len(plan.stages)
    for i, stage in enumerate(plan.stages):
        mesh = plan.meshes[stage.replicas[0].mesh]
        degrees = Degrees(mesh.tp, mesh.cp, mesh.ep, mesh.etp, mesh.dp, mesh.sp)
        first, *later = (Work(*chunk.layers, chunk.embedding, chunk.head) for chunk in plan.chain[i::num])
        work = replace(first, later=tuple(later))
        stages.append((Side(chips.index(mesh.chip), degrees), work))
    slow = tuple(i for i, boundary in enumerate(plan.boundaries) if boundary.slow)
    return Candidate(plan.batch.samples, tuple(stages), slow)


def cuts_across_hosts(plan: Plan) -> bool:
    """Whether some tp group has devices of several hosts."""
    for mesh in plan.meshes:
        for first in range(0, len(mesh.devices), mesh.tp):
            if len({node for node, _ in mesh.devices[first : first + mesh.tp]}) > 1:
                return True
    return False


def _recompute(stage: StageCost, pinned: tuple[Recompute, ...] | None) -> tuple[Recompute, ...]:
    if pinned is not None:
        return pinned
    # Of several chunks each computes as many of its layers again, if it has them.
    layers = max((chunk.recomputed for chunk in stage.chunks), default=stage.recomputed)
    return (Recompute("full", "block", layers) if layers else Recompute(),)


def _split(candidate: Candidate) -> tuple[int, ...]:
    """Decoder layers of every chunk in model order."""
    chunks = [work.chunks for _, work in candidate.stages]
    return tuple(its[i].end - its[i].begin for i in range(candidate.num_chunks) for its in chunks)
