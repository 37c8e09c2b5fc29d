"""Measures messages between two devices with the pipeline's own transport, and rings among devices of one kind."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from flagvega.comm.neighbour import Neighbour, Shape
from flagvega.layout.plan import Boundary, Mesh, Replica, Stage
from flagvega.layout.ranks import Place
from flagvega.platform import Device

WARM_UP = 2
REPEATS = 5
RING_BYTES = (2**16, 2**20, 2**23)


def measure_link(pair: Mapping[str, Any], me: Place, others: Sequence[Place], groups: tuple[Any, Any], tp_group: Any,
                 shapes: Sequence[Shape], device: Device) -> list[tuple[int, float]]:  # fmt: skip
    """(bytes, seconds one way) for messages of each shape, there and back; both ranks of the pair call this.

    ``others`` are the places of the pair in its order; ``groups`` carry messages there and back.
    """
    boundary = Boundary(pair["transport"], pair["wire_dtype"], pair["chunk_bytes"])
    places = [_alone(place, i) for i, place in enumerate(others)]
    if others[0].mesh.chip == others[1].mesh.chip:
        places[1] = replace(places[1], mesh=places[0].mesh)
    first = me.rank == others[0].rank
    mine, other = places if first else places[::-1]
    take, give = (groups[1], groups[0]) if first else groups
    found = []
    for shape in shapes:
        side = Neighbour(mine, boundary, (other,), shape, 1, tp_group, take, give, device)
        tensor = torch.zeros(shape.sequence, 1, shape.hidden, dtype=shape.dtype, device=shape.device)
        side.expect(WARM_UP + REPEATS, 1)
        taken = []
        for _ in range(WARM_UP + REPEATS):
            begin = time.perf_counter()
            if first:
                side.give(tensor)
                side.take()
            else:
                side.give(side.take())
            _settle(shape.device, device)
            taken.append((time.perf_counter() - begin) / 2)
        side.outbox.finish()
        found.append((tensor.numel() * tensor.element_size(), median(taken[WARM_UP:])))
    return found


def measure_ring(group: Any, num_ranks: int, torch_device: torch.device, device: Device) -> tuple[float, float]:
    """(latency of a step in s, bytes per s) of an all-reduce; every rank of the group calls this."""
    points = []
    for size in RING_BYTES:
        tensor = torch.zeros(size // 4, device=torch_device)
        taken = []
        for _ in range(WARM_UP + REPEATS):
            dist.barrier(group)
            begin = time.perf_counter()
            dist.all_reduce(tensor, group=group)
            _settle(torch_device, device)
            taken.append(time.perf_counter() - begin)
        points.append((size, median(taken[WARM_UP:])))
    start, per_byte = fit(points)
    steps = 2 * (num_ranks - 1)
    return start / steps, steps / num_ranks / per_byte


def measure_sharing(world: Any) -> float:
    """Seconds of what all ranks tell each other in a step: the gradients' norm, then loss and times."""
    taken = []
    for _ in range(WARM_UP + REPEATS):
        dist.barrier(world)
        begin = time.perf_counter()
        for size in (1, 16):
            dist.all_reduce(torch.zeros(size, dtype=torch.float64), group=world)
        taken.append(time.perf_counter() - begin)
    return median(taken[WARM_UP:])


def fit(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """(seconds, seconds per byte) of a line by least squares of relative errors, neither below 0."""
    weights = [1 / seconds**2 for _, seconds in points]
    total = sum(weights)
    mean_x = sum(w * x for w, (x, _) in zip(weights, points, strict=True)) / total
    mean_y = sum(w * y for w, (_, y) in zip(weights, points, strict=True)) / total
    spread = sum(w * (x - mean_x) ** 2 for w, (x, _) in zip(weights, points, strict=True))
    slope = sum(w * (x - mean_x) * (y - mean_y) for w, (x, y) in zip(weights, points, strict=True)) / spread
    largest, slowest_s = points[-1]
    if slope <= 0 or mean_y - slope * mean_x < 0:
        return 0.0, slowest_s / largest
    return mean_y - slope * mean_x, slope


def _alone(place: Place, index: int) -> Place:
    """A device as a stage of its own."""
    mesh = Mesh(index, place.mesh.chip, 1, 1, 1, 1, 1, False, ((place.node, place.local),))
    return replace(place, mesh=mesh, stage=Stage(index, (Replica(index, 1, 1),), 1), dp=0, cp=0, tp=0)


def _settle(torch_device: torch.device, device: Device) -> None:
    if torch_device.type != "cpu":
        device.namespace.synchronize()
