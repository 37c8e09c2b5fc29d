"""A point of the space: a layout without its layers, the layers of its stages, and settings beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from flagvega.layout.plan import Recompute
from flagvega.layout.request import MeshRequest
from flagvega.plan.costs import Degrees
from flagvega.tune.candidates import Settings, key_of, read_settings, record_settings


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
    """One candidate."""

    settings: Settings
    """Everything that is not layout."""
    shape: Shape
    split: tuple[int, ...] = ()
    """Layers of every stage."""

    @cached_property
    def values(self) -> Mapping[str, Any]:
        """Every choice by name, as a user knows it."""
        found: dict[str, Any] = {
            "meshes": " | ".join(words_of(mesh) for mesh in self.shape.meshes),
            "layers": "-".join(map(str, self.split)),
            "micro_batch_size": self.shape.micro_batch_size,
            "recompute": recompute_words(self.shape.recompute),
            "use_distributed_optimizer": self.shape.distributed_optimizer,
        }
        if self.shape.virtual_stages > 1:
            found["virtual_stages"] = self.shape.virtual_stages
        return found | dict(self.settings)

    @cached_property
    def key(self) -> str:
        """Alike for equal choices only, in every process."""
        return key_of(self.values)

    @property
    def record(self) -> dict[str, Any]:
        """The candidate as plain data."""
        return {**record_settings(self.settings), "shape": asdict(self.shape), "split": list(self.split)}


def read_point(record: Mapping[str, Any]) -> Point:
    """A candidate from plain data."""
    raw = record["shape"]
    recompute = None if raw["recompute"] is None else tuple(Recompute(**part) for part in raw["recompute"])
    meshes = tuple(MeshRequest(**mesh) for mesh in raw["meshes"])
    shape = Shape(**{**raw, "meshes": meshes, "recompute": recompute})
    return Point(read_settings(record), shape, tuple(record["split"]))


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
