"""What rules know about the work and the devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flagvega.layout.request import MeshRequest
from flagvega.model.workload import Workload


@dataclass(frozen=True)
class Facts:
    """The work of a step, and the devices by chip."""

    work: Workload
    counts: Mapping[str, int]
    """Devices of each chip."""
    node_sizes: Mapping[str, int]
    """Devices of a chip's largest node."""
    refusal: Callable[[MeshRequest], str | None]
    """Why the engine cannot run a mesh, or None."""
    boundary: Callable[[MeshRequest, MeshRequest], str | None]
    """Why the engine cannot join two meshes, or None."""
