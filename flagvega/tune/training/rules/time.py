"""What computes more again than a trial that fitted, and is like it in all else, is no faster."""

from __future__ import annotations

from flagvega.tune.training.needs import Need
from flagvega.tune.training.shape import Point


def check(point: Point, needs: tuple[Need, ...], tried: Point, tried_needs: tuple[Need, ...]) -> str | None:
    """A reason, or None; ``tried`` has run."""
    if point.settings != tried.settings:
        return None
    alike = (
        point.split == tried.split
        and point.shape.meshes == tried.shape.meshes
        and point.shape.micro_batch_size == tried.shape.micro_batch_size
        and point.shape.virtual_stages == tried.shape.virtual_stages
        and point.shape.distributed_optimizer == tried.shape.distributed_optimizer
    )
    if not alike:
        return None
    pairs = list(zip(needs, tried_needs, strict=True))
    if all(one.recomputed >= other.recomputed and one.is_selective >= other.is_selective for one, other in pairs) and (
        any(one.recomputed > other.recomputed or one.is_selective > other.is_selective for one, other in pairs)
    ):
        return "it computes more layers again than a trial that fitted without"
    return None
