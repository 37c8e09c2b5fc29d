"""What is to be computed in a training step, and what of the layout is still open: an engine's offer to a planner."""

from __future__ import annotations

from dataclasses import dataclass, field

from flagvega.layout.plan import Recompute
from flagvega.layout.request import LayoutRequest
from flagvega.model.shape import ModelShape

ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Kernels:
    """What of an engine's kernels decides memory and time."""

    keeps_scores: bool = False
    """Attention writes the scores of all pairs of tokens to memory and keeps their softmax."""
    repeats_attention: bool = False
    """Selective recompute: attention is computed again in the backward pass, and keeps no scores for it."""
    fused: bool = False
    """As Transformer Engine does: rotation keeps its results only, the loss overwrites its logits, and one unused
    gradient is kept for every shape of weight."""


@dataclass(frozen=True)
class Workload:
    """One training step of a model."""

    shape: ModelShape
    seq: int
    """Tokens of a sample."""
    dtype: str
    """Element type of weights and activations: ``fp32``, ``bf16`` or ``fp16``."""
    global_batch: int
    """Samples of a step."""
    batch_unit: int
    """Greatest number that divides every step's samples (less than the global batch while the batch ramps up)."""
    gradient_bytes: int
    """Of one parameter."""
    optimizer_bytes: int
    """State of one parameter: moments, and a master copy where weights are not fp32."""
    overlap_reduction: bool = False
    """Gradients are reduced while the last micro-batch is still in its backward pass."""
    kernels: Kernels = Kernels()

    @property
    def element_bytes(self) -> int:
        """Of one weight, or of one element of an activation."""
        return ELEMENT_BYTES[self.dtype]


@dataclass(frozen=True)
class KeptMesh:
    """A mesh that the user wants as it is, wherever its chip comes in the pipeline."""

    chip: str
    tp: int
    cp: int
    ep: int
    etp: int
    dp: int
    pp: int


@dataclass(frozen=True)
class Choices:
    """What the planner may choose; None or several entries are open, one entry is a pin."""

    tp: tuple[int, ...] | None = None
    cp: tuple[int, ...] | None = None
    ep: tuple[int, ...] | None = None
    etp: tuple[int, ...] | None = None
    sp: tuple[bool, ...] = (True, False)
    """Where tp is above 1: the first that is legal is taken."""
    micro_batch_size: int | None = None
    """Of a rank of the first stage."""
    num_stages: int | None = None
    recompute: tuple[Recompute, ...] | None = None
    """The same for every stage; None: each stage recomputes as little as its memory asks for."""
    distributed_optimizer: bool = True
    slow_boundaries: bool = True
    """Boundaries between unlike chips may keep one more micro-batch in flight."""
    max_tp: int | None = None
    order: tuple[str, ...] | None = None
    """Chips in pipeline order; those that a plan leaves out are skipped."""
    kept: tuple[KeptMesh, ...] = ()
    """At most one for each chip."""
    virtual_stages: int | None = None
    """Chunks of every stage: 1 is plain 1F1B, more are interleaved."""
    layers_per_chunk: int | None = None
    """The same in every chunk of an interleaved schedule."""
    can_interleave: bool = False
    """The engine runs interleaved schedules."""


@dataclass(frozen=True)
class Offer:
    """What an engine offers the planner: the work, the freedom, and all else that a layout has."""

    workload: Workload
    choices: Choices
    layout: LayoutRequest
    """Everything that no choice changes; its meshes, split and sizes are replaced."""
    where: dict[str, str] = field(default_factory=dict)
    """Where the user wrote what is pinned, for messages."""
