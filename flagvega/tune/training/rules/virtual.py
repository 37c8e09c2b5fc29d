"""Interleaved schedules: one mesh of several stages, whole chunks of layers, micro-batches in whole rounds."""

from __future__ import annotations

from flagvega.tune.training.facts import Facts
from flagvega.tune.training.shape import Shape


def check(shape: Shape, facts: Facts) -> str | None:
    """A reason, or None."""
    virtual = shape.virtual_stages
    if virtual == 1:
        return None
    stages = len(shape.stage_meshes)
    if len(shape.meshes) > 1:
        return "an interleaved schedule runs in one mesh"
    if stages < 2:
        return "an interleaved schedule needs two stages"
    if facts.work.shape.layers % (stages * virtual):
        return f"{facts.work.shape.layers} layers do not make {stages * virtual} chunks"
    rounds = facts.work.global_batch // shape.samples
    return f"{rounds} micro-batches are no multiple of {stages} stages" if rounds % stages else None
