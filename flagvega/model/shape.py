"""The shape of a decoder-only transformer: every number that decides what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of the MLP."""

    num: int
    topk: int
    """Experts that each token visits."""
    ffn: int
    """Inner width of one expert."""
    shared_ffn: int = 0
    """Inner width of the expert that every token visits; 0: none."""
    shared_gate: bool = False
    """The shared expert's output is scaled by a learned gate of ``hidden`` parameters."""
    router_bias: bool = False
    """The router learns a bias per expert."""
    layers: tuple[int, ...] | None = None
    """Layers that have experts; None: all."""


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention: keys and values (and queries) go through a narrow projection."""

    q_rank: int | None
    """None: queries are projected directly."""
    kv_rank: int
    qk_nope_dim: int
    qk_rope_dim: int
    v_dim: int


@dataclass(frozen=True)
class ModelShape:
    """One decoder-only transformer. Widths are in elements, per full (unsharded) model."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    """Inner width of the MLP (of one branch where gated)."""
    vocab: int
    """Rows of the embedding, padding included where the model is trained with it."""
    tied: bool = False
    """The output layer is the embedding's matrix."""
    norm: Literal["RMSNorm", "LayerNorm"] = "RMSNorm"
    norms_per_layer: int = 2
    gated: bool = True
    """The MLP has two branches, one gating the other (SwiGLU, GeGLU)."""
    qkv_bias: bool = False
    linear_bias: bool = False
    """Biases on the attention's output projection and on the MLP."""
    qk_norm: bool = False
    """Queries and keys are normalised per head."""
    positions: int = 0
    """Rows of a learned position table; 0: rotary or none."""
    experts: Experts | None = None
    latent: LatentAttention | None = None

    def has_experts(self, layer: int) -> bool:
        """Whether a layer's MLP is a mixture of experts."""
        return self.experts is not None and (self.experts.layers is None or layer in self.experts.layers)

    @property
    def query_width(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.kv_heads * self.head_dim
