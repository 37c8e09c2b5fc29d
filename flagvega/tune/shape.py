"""A point of the space: a layout without its layers, the layers of its stages, and settings beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flagvega.layout.plan import Recompute
from flagvega.layout.request import MeshRequest
from flagvega.plan.costs import Degrees

Settings = tuple[tuple[str, Any], ...]
"""(dimension, value) of everything that is not layout, in the order of the space."""


@dataclass(frozen=True)
class Shape:
    """A layout but for the layers of its stages."""

    meshes: tuple[MeshRequest, ...]
    """In pipeline order, each with its ``dp`` and its chip."""
    micro_batch_size: int
    """Samples of a rank of the first mesh."""
    virtual_stages: int = 1
    distributed_optimizer: bool = True
    recompute: tuple[Recompute, ...] | None = None
    """Alike in all stages; None: each stage recomputes as little as its memory asks for."""

    @cached_property
    def samples(self) -> int:
        """Of a global micro-batch."""
        return self.micro_batch_size * (self.meshes[0].dp or 1)

    @cached_property
    def stage_meshes(self) -> tuple[MeshRequest, ...]:
        """The mesh of every stage."""
        return tuple(mesh for mesh in self.meshes for _ in range(mesh.pp))


@dataclass(frozen=True)
class Point:
    """One candidate; ``shape`` is None where the layout is the YAML's own."""

    settings: Settings = ()
    shape: Shape | None = None
    split: tuple[int, ...] = ()
    """Layers of every stage."""

    @cached_property
    def values(self) -> Mapping[str, Any]:
        """Every choice by name, as a user knows it."""
        found: dict[str, Any] = {}
        if self.shape is not None:
            found["meshes"] = " | ".join(words_of(mesh) for mesh in self.shape.meshes)
            found["layers"] = "-".join(map(str, self.split))
            found["micro_batch_size"] = self.shape.micro_batch_size
            found["recompute"] = recompute_words(self.shape.recompute)
            found["use_distributed_optimizer"] = self.shape.distributed_optimizer
            if self.shape.virtual_stages > 1:
                found["virtual_stages"] = self.shape.virtual_stages
        return found | dict(self.settings)

    @cached_property
    def key(self) -> str:
        """Alike for equal choices only, in every process."""
        text = json.dumps(self.values, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def words_of(mesh: MeshRequest) -> str:
    """``emu-l tp2 pp2``: degrees above 1."""
    degrees = {"tp": mesh.tp, "cp": mesh.cp, "ep": mesh.ep, "etp": mesh.etp or 1, "dp": mesh.dp or 1, "pp": mesh.pp}
    words = [f"{name}{degree}" for name, degree in degrees.items() if degree > 1 and name != "etp"]
    if mesh.etp not in (None, mesh.tp):
        words.append(f"etp{mesh.etp}")
    return " ".join([str(mesh.chip), *words, *(["sp"] if mesh.sp else [])])


def recompute_words(recompute: tuple[Recompute, ...] | None) -> str:
    """``full block 2``, ``none``, or that memory decides."""
    if recompute is None:
        return "as needed"
    part = recompute[0]
    return " ".join(str(word) for word in (part.granularity, part.method, part.num_layers) if word) or "none"


def degrees_of(mesh: MeshRequest) -> Degrees:
    """The degrees of a mesh's stages."""
    return Degrees(mesh.tp, mesh.cp, mesh.ep, mesh.tp if mesh.etp is None else mesh.etp, mesh.dp or 1, mesh.sp)
