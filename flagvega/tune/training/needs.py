"""What a device of a stage holds, in the quantities that memory grows or falls with."""

from __future__ import annotations

from dataclasses import dataclass

from flagvega.tune.training.forecast import Forecast
from flagvega.tune.training.shape import Point, degrees_of


@dataclass(frozen=True)
class Need:
    """Of one stage."""

    chip: str
    tp: int
    cp: int
    ep: int
    etp: int
    sp: bool
    layers: int
    embedding: bool
    head: bool
    samples: float
    """Of a rank, in a micro-batch."""
    in_flight: int
    recomputed: int
    """Layers computed again in full."""
    is_selective: bool
    """Attention is computed again everywhere."""
    shards: int
    """That the optimizer's state is cut into."""

    @property
    def words(self) -> str:
        """For messages."""
        again = f", {self.recomputed} computed again" if self.recomputed else ""
        return f"{self.layers} layers on {self.chip} with tp {self.tp}, {self.samples:g} samples{again}"


def needs_of(point: Point, forecast: Forecast) -> tuple[Need, ...]:
    """Of every stage of a candidate."""
    shape = point.shape
    outlook = forecast.look(shape, point.split)
    m = outlook.pipeline.num_micro_batches
    selective = shape.recompute is not None and shape.recompute[0].granularity == "selective"
    found = []
    for i, (mesh, cost) in enumerate(zip(shape.stage_meshes, outlook.stages, strict=True)):
        its = degrees_of(mesh)
        found.append(Need(
            str(mesh.chip), its.tp, its.cp, its.ep, its.etp, its.sp, point.split[i], i == 0,
            i == len(point.split) - 1, shape.samples / its.dp, min(outlook.candidate.in_flight(i), m),
            cost.recomputed, selective, its.replicas[0] if shape.distributed_optimizer else 1,
        ))  # fmt: skip
    return tuple(found)
