"""The plan: the only thing that ranks read about parallelism.

Frozen data. :mod:`flagvega.layout.codec` reads and writes it, :mod:`flagvega.layout.check` judges
it, :mod:`flagvega.layout.ranks` says which rank does what.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

SCHEMA = 1

Granularity = Literal["full", "selective"]
Method = Literal["uniform", "block"]


@dataclass(frozen=True)
class Batch:
    """What one global micro-batch is."""

    samples: int
    """Samples of one global micro-batch (B); every stage runs the same ones."""
    loss: Literal["token", "mean"]
    """``token``: summed losses over all tokens of the step; ``mean``: mean of local micro-batch means."""
    padded_vocab_size: int
    """Vocabulary after padding; never depends on tp."""


@dataclass(frozen=True)
class Mesh:
    """A block of devices of one chip with its own degrees, holding one or more stages."""

    id: int
    chip: str
    tp: int
    cp: int
    ep: int
    dp: int
    etp: int
    """Tensor parallelism inside experts."""
    sp: bool
    """Sequence parallelism: activations between tp regions are sharded over the sequence."""
    devices: tuple[tuple[int, int], ...]
    """(node, local index) in rank order: stage slowest, then dp, cp, tp fastest."""

    @property
    def stage_size(self) -> int:
        """Devices of one stage."""
        return self.tp * self.cp * self.dp

    @property
    def num_stages(self) -> int:
        """Stages that this mesh holds."""
        return len(self.devices) // self.stage_size


@dataclass(frozen=True)
class Replica:
    """The part of a stage that one mesh holds (one replica a stage today)."""

    mesh: int
    dp: int
    micro_batch_size: int
    """Samples that each of the dp ranks takes of a global micro-batch."""


@dataclass(frozen=True)
class Recompute:
    """Activation recompute of a stage for micro-batches up to ``until`` (exclusive; None: all)."""

    granularity: Granularity | None = None
    method: Method | None = None
    num_layers: int | None = None
    until: int | None = None


@dataclass(frozen=True)
class Stage:
    """Consecutive layers on one group of devices."""

    id: int
    replicas: tuple[Replica, ...]
    in_flight: int
    """Micro-batches whose activations the stage may hold at once."""
    recompute: tuple[Recompute, ...] = (Recompute(),)


@dataclass(frozen=True)
class Chunk:
    """A run of layers in model order; a stage that appears twice is interleaved."""

    stage: int
    layers: tuple[int, int]
    """Half-open range of decoder layers."""
    embedding: bool = False
    mtp: bool = False
    head: bool = False

    @property
    def num_layers(self) -> int:
        """Decoder layers of the chunk."""
        return self.layers[1] - self.layers[0]


@dataclass(frozen=True)
class Boundary:
    """How stage ``i`` hands to stage ``i + 1``."""

    transport: Literal["native", "bridge"]
    """``native``: the chip's own collectives; ``bridge``: through host memory over gloo."""
    wire_dtype: str | None = None
    """Element type on the wire; None keeps that of the activations."""
    chunk_bytes: int = 0
    """Size of the pieces a transfer is cut into; 0 sends it whole."""
    slow: bool = False
    """One more micro-batch is kept in flight upstream, to hide the transfer."""


@dataclass(frozen=True)
class Plan:
    """Meshes, stages and the chain through them. Two runs with one plan, seed and data are equal."""

    batch: Batch
    meshes: tuple[Mesh, ...]
    stages: tuple[Stage, ...]
    chain: tuple[Chunk, ...]
    boundaries: tuple[Boundary, ...]
    schedule: Literal["1f1b", "interleaved"] = "1f1b"
    distributed_optimizer: bool = False
    tied_embeddings: bool = False
    kind: Literal["train"] = "train"
    schema: int = SCHEMA
    predictions: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def world_size(self) -> int:
        """Ranks of the run."""
        return sum(len(mesh.devices) for mesh in self.meshes)

    @property
    def num_layers(self) -> int:
        """Decoder layers of the model."""
        return max(chunk.layers[1] for chunk in self.chain)
