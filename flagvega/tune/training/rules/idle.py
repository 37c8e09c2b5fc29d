"""All devices work: a mesh's degrees multiply to the devices there are."""

from __future__ import annotations

from collections import Counter

from flagvega.tune.training.facts import Facts
from flagvega.tune.training.shape import Shape


def check(shape: Shape, facts: Facts) -> str | None:
    """A reason, or None."""
    used = Counter[str]()
    for mesh in shape.meshes:
        used[str(mesh.chip)] += mesh.tp * mesh.cp * (mesh.dp or 1) * mesh.pp
    for chip, count in facts.counts.items():
        if used[chip] != count:
            return f"{used[chip]} of {count} {chip} would work"
    return None
