"""Every stage has a layer."""

from __future__ import annotations

from flagvega.layout.request import MeshRequest
from flagvega.tune.training.facts import Facts


def check(mesh: MeshRequest, facts: Facts) -> str | None:
    """A reason, or None."""
    layers = facts.work.shape.layers
    return f"{mesh.pp} stages, but {layers} layers" if mesh.pp > layers else None
