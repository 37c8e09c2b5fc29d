"""FlagScale's order: its grid as written out, or sorted by its keys for memory or performance."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flagvega.tune.candidates import Family
from flagvega.tune.pool import Pool
from flagvega.tune.search import Listed, listed
from flagvega.tune.training.families import Layouts
from flagvega.tune.training.shape import Shape


def grid(pool: Pool, priority: str | None) -> Listed:
    """As written out, or sorted; candidates that are no layouts stay as they are written."""
    return listed(pool, None if priority is None else _PRIORITIES[priority])


def _by_memory(family: Family) -> tuple[float, ...]:
    """What needs least first: with recompute, large tp, sequences cut, small micro-batches, large pp, small dp."""
    if not isinstance(family, Layouts):
        return ()
    return (*_common(family.shape), family.shape.meshes[0].dp or 1, -family.shape.distributed_optimizer)


def _by_performance(family: Family) -> tuple[float, ...]:
    """FlagScale's guess at speed: no recompute, then as for memory, but large dp and few layers computed again."""
    if not isinstance(family, Layouts):
        return ()
    recomputes, *common = _common(family.shape)
    depth = max((part.num_layers or 0 for part in family.shape.recompute or ()), default=0)
    return (-recomputes, *common, -(family.shape.meshes[0].dp or 1), depth)


def _common(shape: Shape) -> tuple[float, ...]:
    """The keys that both orders have; of several meshes the largest tp and all stages count."""
    recomputes = bool(shape.recompute and shape.recompute[0].granularity)
    meshes = shape.meshes
    return (
        -recomputes, -max(mesh.tp for mesh in meshes), -any(mesh.sp for mesh in meshes), shape.micro_batch_size,
        -sum(mesh.pp for mesh in meshes),
    )  # fmt: skip


_PRIORITIES: Mapping[str, Callable[[Family], tuple[float, ...]]] = {
    "memory": _by_memory, "performance": _by_performance,
}  # fmt: skip
