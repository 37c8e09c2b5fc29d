"""The engine can run the mesh: its heads, its vocabulary and its experts divide."""

from __future__ import annotations

from flagvega.layout.request import MeshRequest
from flagvega.tune.training.facts import Facts


def check(mesh: MeshRequest, facts: Facts) -> str | None:
    """A reason, or None."""
    return facts.refusal(mesh)
