"""What computation consists of, piece by piece, as kernels run it: products, attention, and passes over memory.

:mod:`flagvega.model.work` counts the same products as one number. Here stand beside them the passes over memory
that no product hides: norms, residuals, rotation, the MLP's activation, routing of tokens, the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

from flagvega.model.parameters import layer_parameters
from flagvega.model.shape import ModelShape
from flagvega.model.workload import Kernels

FLASH_BACKWARD = 2.5
"""Fused attention computes its scores again: five products where forward has two (Dao, arXiv 2205.14135)."""
SCORE_PASSES = 5.0
"""Over the scores of unfused attention: six forward (product, mask, softmax) and nine backward, a third of all."""
ROUTING_PASSES = 8.0
"""Over the tokens sent to experts: out into experts' order, after the exchange once more, and both back."""


@dataclass(frozen=True)
class Piece:
    """Forward of one piece of a layer, or of an end of the model, on one rank."""

    flops: float
    """Of its products; a multiply-add is two."""
    width: float
    """The narrower side of its weights: what decides how well a chip's units are used."""
    operand_bytes: float
    """Weights, read once: they bound a product of few tokens."""
    passed_bytes: float = 0.0
    """Read and written by kernels that compute nearly nothing, one after another with the products."""
    backward: float = 2.0
    """How many times as much the backward pass is."""
    kind: Literal["products", "attention", "experts"] = "products"
    """Fused attention, and many small products in one kernel, sustain another share than others."""


@dataclass(frozen=True)
class Rank:
    """One rank's share of a stage."""

    tokens: float
    """Of one micro-batch."""
    tp: int
    ep: int
    etp: int
    cut: int
    """Parts that the sequence between products is cut into: tp, where the sequence is parallel."""


def layer_pieces(shape: ModelShape, layer: int, seq: int, rank: Rank, kernels: Kernels, size: int) -> list[Piece]:
    """Forward of decoder layer ``layer``; ``size`` bytes an element."""
    parts = layer_parameters(shape, layer)
    experts = shape.experts if shape.has_experts(layer) else None
    query, value, rotated = _head_widths(shape)
    tokens, tp = rank.tokens, rank.tp
    branches = 3 if shape.gated else 2
    ffn = experts.shared_ffn if experts else shape.ffn
    # Norms read and write, residual additions read twice and write; rotation and activation likewise.
    elements = (2 * shape.norms_per_layer + 6) * shape.hidden / rank.cut + (2 * rotated + branches * ffn) / tp
    dense = Piece(
        tokens * 2.0 * (parts.attention + parts.mlp + parts.router * tp) / tp,
        shape.hidden / tp,
        size * (parts.attention + parts.mlp) / tp,
        size * tokens * elements,
    )
    found = [dense, _attention(shape, seq, rank, kernels, size, query + value)]
    if experts:
        visited = tokens * experts.topk / (rank.etp if rank.etp > 1 else tp)
        weights = parts.experts / (rank.ep * rank.etp)
        per_token = 2.0 * parts.experts / experts.num
        found.append(
            Piece(
                tokens * experts.topk * per_token / tp,
                min(shape.hidden, experts.ffn) / rank.etp,
                size * weights,
                size * visited * (ROUTING_PASSES * shape.hidden + branches * experts.ffn / rank.etp),
                kind="experts",
            )
        )
    return found


def _attention(shape: ModelShape, seq: int, rank: Rank, kernels: Kernels, size: int, widths: int) -> Piece:
    whole = 2.0 * shape.heads * widths * seq * rank.tokens / rank.tp
    again = float(kernels.repeats_attention)
    if kernels.keeps_scores:
        scores = size * shape.heads * seq * rank.tokens / rank.tp
        return Piece(whole, float(seq), 0.0, SCORE_PASSES * scores, 2.0 + again)
    # A causal kernel skips the upper half.
    return Piece(whole / 2, inf, 0.0, 0.0, FLASH_BACKWARD + again, "attention")


def _head_widths(shape: ModelShape) -> tuple[int, int, int]:
    """Of one head's query (or key) and of its value; and the width that rotation passes over."""
    latent = shape.latent
    if latent is None:
        return shape.head_dim, shape.head_dim, 0 if shape.positions else shape.query_width + shape.kv_width
    query = latent.qk_nope_dim + latent.qk_rope_dim
    return query, latent.v_dim, 2 * shape.heads * query


def head_pieces(shape: ModelShape, rank: Rank, kernels: Kernels, size: int) -> list[Piece]:
    """Final norm, output layer and loss."""
    weights = shape.hidden * shape.vocab / rank.tp
    logits = rank.tokens * shape.vocab / rank.tp
    # Unfused: into fp32, the largest, less it, its exponential, the sum and the quotient.
    passes = 2.0 * size if kernels.fused else size + 8 * 4.0
    return [
        Piece(
            2.0 * rank.tokens * weights,
            shape.hidden / rank.tp,
            size * weights,
            passes * logits + size * rank.tokens * 2 * shape.hidden / rank.cut,
        )
    ]


def embedding_pieces(shape: ModelShape, rank: Rank, size: int) -> list[Piece]:
    """A look-up, no products."""
    tables = 2 if shape.positions else 1
    return [Piece(0.0, shape.hidden, 0.0, size * (1 + tables) * rank.tokens * shape.hidden / rank.cut)]
