"""How many parameters each part of a model has. Exact, not estimated."""

from __future__ import annotations

from dataclasses import dataclass

from flagvega.model.shape import ModelShape


@dataclass(frozen=True)
class LayerParameters:
    """Parameters of one layer by how they are sharded."""

    attention: int
    """Split by tensor parallelism."""
    mlp: int
    """Split by tensor parallelism; includes a shared expert."""
    experts: int
    """All routed experts; split by expert parallelism."""
    router: int
    """Held whole by every rank."""
    norms: int
    """Held whole by every rank."""

    @property
    def total(self) -> int:
        """All parameters of the layer."""
        return self.attention + self.mlp + self.experts + self.router + self.norms


def _linear(inputs: int, outputs: int, bias: bool) -> int:
    return inputs * outputs + (outputs if bias else 0)


def _norm(shape: ModelShape, width: int) -> int:
    return width * (2 if shape.norm == "LayerNorm" else 1)


def attention_parameters(shape: ModelShape) -> int:
    """Projections of queries, keys, values and output; the norms inside latent attention."""
    if shape.latent is None:
        qkv = _linear(shape.hidden, shape.query_width + 2 * shape.kv_width, shape.qkv_bias)
        return qkv + _linear(shape.query_width, shape.hidden, shape.linear_bias)
    latent = shape.latent
    queries = shape.heads * (latent.qk_nope_dim + latent.qk_rope_dim)
    if latent.q_rank is None:
        query = shape.hidden * queries
    else:
        query = shape.hidden * latent.q_rank + _norm(shape, latent.q_rank) + latent.q_rank * queries
    down = shape.hidden * (latent.kv_rank + latent.qk_rope_dim) + _norm(shape, latent.kv_rank)
    up = latent.kv_rank * shape.heads * (latent.qk_nope_dim + latent.v_dim)
    return query + down + up + shape.heads * latent.v_dim * shape.hidden


def mlp_parameters(shape: ModelShape, ffn: int) -> int:
    """An MLP of inner width ``ffn``."""
    branches = 2 if shape.gated else 1
    return _linear(shape.hidden, branches * ffn, shape.linear_bias) + _linear(ffn, shape.hidden, shape.linear_bias)


def layer_parameters(shape: ModelShape, layer: int) -> LayerParameters:
    """Parameters of decoder layer ``layer`` (0-based)."""
    norms = shape.norms_per_layer * _norm(shape, shape.hidden)
    norms += 2 * _norm(shape, shape.head_dim) if shape.qk_norm else 0
    attention = attention_parameters(shape)
    experts = shape.experts
    if experts is None or not shape.has_experts(layer):
        return LayerParameters(attention, mlp_parameters(shape, shape.ffn), 0, 0, norms)
    return LayerParameters(
        attention=attention,
        mlp=mlp_parameters(shape, experts.shared_ffn) if experts.shared_ffn else 0,
        experts=experts.num * mlp_parameters(shape, experts.ffn),
        router=_linear(shape.hidden, experts.num, experts.router_bias) + (shape.hidden if experts.shared_gate else 0),
        norms=norms,
    )


def embedding_parameters(shape: ModelShape) -> int:
    """Token embedding and learned positions."""
    return (shape.vocab + shape.positions) * shape.hidden


def head_parameters(shape: ModelShape) -> int:
    """The output layer; a tied one has none of its own."""
    return 0 if shape.tied else shape.vocab * shape.hidden


def final_norm_parameters(shape: ModelShape) -> int:
    """The norm after the last layer."""
    return _norm(shape, shape.hidden)


def total_parameters(shape: ModelShape) -> int:
    """Parameters of the whole model."""
    layers = sum(layer_parameters(shape, layer).total for layer in range(shape.layers))
    return embedding_parameters(shape) + layers + final_norm_parameters(shape) + head_parameters(shape)


def active_parameters(shape: ModelShape) -> int:
    """Parameters that one token meets: of routed experts, only those it visits."""
    idle = 0
    if shape.experts is not None:
        unvisited = (shape.experts.num - shape.experts.topk) * mlp_parameters(shape, shape.experts.ffn)
        idle = unvisited * sum(shape.has_experts(layer) for layer in range(shape.layers))
    return total_parameters(shape) - idle
