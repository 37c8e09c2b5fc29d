"""Tensor parallelism stays inside a host."""

from __future__ import annotations

from flagvega.layout.request import MeshRequest
from flagvega.tune.training.facts import Facts


def check(mesh: MeshRequest, facts: Facts) -> str | None:
    """A reason, or None."""
    size = facts.node_sizes.get(str(mesh.chip), 0)
    return f"tp {mesh.tp} is more than a host's {size} {mesh.chip}" if mesh.tp > size else None
