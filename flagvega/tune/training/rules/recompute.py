"""No more layers are computed again than a stage has."""

from __future__ import annotations

from flagvega.tune.training.facts import Facts
from flagvega.tune.training.shape import Shape


def check(shape: Shape, facts: Facts) -> str | None:
    """A reason, or None."""
    depth = max((part.num_layers or 0 for part in shape.recompute or ()), default=0)
    most = -(-facts.work.shape.layers // len(shape.stage_meshes)) if len(shape.meshes) == 1 else (
        facts.work.shape.layers - len(shape.stage_meshes) + 1
    )  # fmt: skip
    return f"{depth} layers to be computed again, but a stage has {most} at most" if depth > most else None
