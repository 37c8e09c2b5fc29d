"""Micro-batches divide the step's samples, and every mesh's replicas divide a micro-batch."""

from __future__ import annotations

from flagvega.tune.training.facts import Facts
from flagvega.tune.training.shape import Shape


def check(shape: Shape, facts: Facts) -> str | None:
    """A reason, or None."""
    unit = facts.work.batch_unit
    if unit % shape.samples:
        return f"{shape.samples} samples of a micro-batch do not divide the step's {unit}"
    for mesh in shape.meshes:
        if shape.samples % (mesh.dp or 1):
            return f"dp {mesh.dp} does not divide {shape.samples} samples"
    return None
