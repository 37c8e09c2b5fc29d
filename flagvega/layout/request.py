"""What a YAML fixes about the layout, in no engine's words; ``build_plan`` turns it into a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from flagvega.layout.plan import Recompute


@dataclass(frozen=True)
class MeshRequest:
    """Degrees of one mesh; ``dp=None`` fills the devices at hand, ``chip=None`` takes any."""

    tp: int = 1
    cp: int = 1
    ep: int = 1
    dp: int | None = None
    pp: int = 1
    etp: int | None = None
    sp: bool = False
    chip: str | None = None


@dataclass(frozen=True)
class LayoutRequest:
    """A layout given by hand."""

    meshes: tuple[MeshRequest, ...]
    num_layers: int
    micro_batch_size: int
    """Samples of a rank of the first mesh; B is this times that mesh's dp."""
    padded_vocab_size: int
    layer_split: tuple[int, ...] | None = None
    """Layers per stage; None: as even as can be."""
    virtual_stages: int = 1
    """Model chunks per stage."""
    loss: Literal["token", "mean"] = "token"
    distributed_optimizer: bool = False
    tied_embeddings: bool = False
    recompute: tuple[tuple[Recompute, ...], ...] = ()
    """Per stage; empty: none anywhere; one entry: the same everywhere."""
    slow_boundaries: tuple[int, ...] | None = None
    """Boundaries with an extra micro-batch in flight; None: those between unlike chips."""
    wire_dtype: str | None = None
    chunk_bytes: int = 0
    bridge_meshes: bool = False
    """Bridge between any two meshes, of like chips too."""
    where: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Where the user wrote ``meshes``, ``layer_split``, ``micro_batch_size``, ``recompute``: for messages."""
