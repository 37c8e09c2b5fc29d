"""Who is who: the rank grid of a plan, on one screen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from flagvega.layout.plan import Chunk, Mesh, Plan, Stage


@dataclass(frozen=True)
class Place:
    """What one rank is in a plan."""

    rank: int
    node: int
    local: int
    mesh: Mesh
    stage: Stage
    dp: int
    cp: int
    tp: int

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.mesh.chip}, stage {self.stage.id}, dp {self.dp}, cp {self.cp}, tp {self.tp})"


@cache
def places(plan: Plan) -> tuple[Place, ...]:
    """All places, indexed by rank: meshes in order; in each, stage slowest, then dp, cp, tp."""
    found: list[Place] = []
    for mesh in plan.meshes:
        stages = [stage for stage in plan.stages if stage.replicas[0].mesh == mesh.id]
        for i, (node, local) in enumerate(mesh.devices):
            stage, rest = divmod(i, mesh.stage_size)
            dp, rest = divmod(rest, mesh.cp * mesh.tp)
            cp, tp = divmod(rest, mesh.tp)
            found.append(Place(len(found), node, local, mesh, stages[stage], dp, cp, tp))
    return tuple(found)


def find_place(plan: Plan, node: int, local: int) -> Place:
    """The place of a device; ranks find themselves by it, never by the launcher's numbering."""
    return next(place for place in places(plan) if (place.node, place.local) == (node, local))


def stage_places(plan: Plan, stage: int) -> tuple[Place, ...]:
    """The places of a stage in rank order."""
    return tuple(place for place in places(plan) if place.stage.id == stage)


def stage_chunks(plan: Plan, stage: int) -> tuple[Chunk, ...]:
    """The model chunks of a stage in the order of its virtual stages."""
    return tuple(chunk for chunk in plan.chain if chunk.stage == stage)


def num_slow(plan: Plan, before: int | None = None) -> int:
    """Slow boundaries of the chain, or those before a stage."""
    return sum(boundary.slow for boundary in plan.boundaries[:before])
