"""The engine can join the meshes: what one hands over, the next can take."""

from __future__ import annotations

from flagvega.tune.training.facts import Facts
from flagvega.tune.training.shape import Shape


def check(shape: Shape, facts: Facts) -> str | None:
    """A reason, or None."""
    for sender, receiver in zip(shape.meshes, shape.meshes[1:], strict=False):
        if reason := facts.boundary(sender, receiver):
            return reason
    return None
