"""FLOPs and bytes of each part of a model, on one rank.

A multiply-add is two FLOPs. Matrix products follow Narayanan et al., "Efficient Large-Scale Language
Model Training on GPU Clusters Using Megatron-LM" (arXiv 2104.04473, appendix); attention counts the
lower triangle only, as Megatron-LM does: a token attends to half of the sequence on average.
Backward is twice forward (Kaplan et al., arXiv 2001.08361). Norms, activations and softmax count no FLOPs.
"""

from __future__ import annotations

from dataclasses import dataclass

from flagvega.model.parameters import layer_parameters
from flagvega.model.shape import ModelShape


@dataclass(frozen=True)
class Work:
    """What a piece of computation asks of a chip."""

    flops: float
    num_bytes: float
    """Bytes read from and written to device memory when every operand is moved once."""

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.num_bytes + other.num_bytes)

    def __mul__(self, factor: float) -> Work:
        return Work(self.flops * factor, self.num_bytes * factor)


def backward(forward: Work) -> Work:
    """The backward pass of a piece of work: one product for the input's gradient, one for the weight's."""
    return forward * 2.0


def _head_widths(shape: ModelShape) -> tuple[int, int]:
    """Widths of one head's query (or key) and of its value."""
    if shape.latent is None:
        return shape.head_dim, shape.head_dim
    return shape.latent.qk_nope_dim + shape.latent.qk_rope_dim, shape.latent.v_dim


def attention_flops(shape: ModelShape, seq: int) -> float:
    """FLOPs per token of scores and weighted sum over a causal sequence of ``seq`` tokens, all heads."""
    return 2.0 * shape.heads * sum(_head_widths(shape)) * seq / 2


def _matmul_parameters(shape: ModelShape, layer: int) -> float:
    """Weights that one token is multiplied with in a layer."""
    parts = layer_parameters(shape, layer)
    visited = shape.experts.topk / shape.experts.num if shape.experts is not None else 0.0
    return parts.attention + parts.mlp + parts.router + parts.experts * visited


def _activation_elements(shape: ModelShape, layer: int) -> float:
    """Elements per token that a layer reads and writes, each operand and result of a product once."""
    query, value = _head_widths(shape)
    attention = shape.heads * (2 * query + 2 * value) if shape.latent else 4 * shape.query_width + 4 * shape.kv_width
    branches = 3 if shape.gated else 2
    if shape.experts is not None and shape.has_experts(layer):
        mlp = shape.experts.topk * (2 * shape.hidden + 2 * branches * shape.experts.ffn)
        mlp += 2 * branches * shape.experts.shared_ffn
    else:
        mlp = 2 * shape.hidden + 2 * branches * shape.ffn
    return attention + mlp + (2 + 2 * shape.norms_per_layer) * shape.hidden


def layer_work(
    shape: ModelShape,
    layer: int,
    seq: int,
    samples: int,
    *,
    tp: int = 1,
    cp: int = 1,
    ep: int = 1,
    element_bytes: int = 2,
) -> Work:
    """Forward of decoder layer ``layer`` for ``samples`` sequences of ``seq`` tokens on one rank of a mesh."""
    tokens = samples * seq / cp
    flops = tokens * (2.0 * _matmul_parameters(shape, layer) + attention_flops(shape, seq)) / tp
    parts = layer_parameters(shape, layer)
    weights = (parts.attention + parts.mlp + parts.experts / ep) / tp + parts.router + parts.norms
    return Work(flops, element_bytes * (weights + tokens * _activation_elements(shape, layer) / tp))


def head_work(shape: ModelShape, seq: int, samples: int, *, tp: int = 1, cp: int = 1, element_bytes: int = 2) -> Work:
    """Forward of final norm, output layer and loss on one rank; logits are read once more in fp32 for the loss."""
    tokens = samples * seq / cp
    weights = shape.hidden * shape.vocab / tp
    logits = tokens * shape.vocab / tp
    num_bytes = element_bytes * (weights + tokens * 3 * shape.hidden + logits) + 4 * logits
    return Work(2.0 * tokens * shape.hidden * shape.vocab / tp, num_bytes)


def embedding_work(shape: ModelShape, seq: int, samples: int, *, cp: int = 1, element_bytes: int = 2) -> Work:
    """Forward of the embedding on one rank: a look-up, no products."""
    tables = 2 if shape.positions else 1
    return Work(0.0, element_bytes * (1 + tables) * samples * seq / cp * shape.hidden)


def model_flops(shape: ModelShape, seq: int, samples: int) -> float:
    """FLOPs of forward and backward of the whole model without recompute: the numerator of MFU."""
    layers = sum(layer_work(shape, layer, seq, samples).flops for layer in range(shape.layers))
    return 3.0 * (layers + head_work(shape, seq, samples).flops)
