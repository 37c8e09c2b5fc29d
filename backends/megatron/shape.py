"""The model's shape from engine arguments: control side, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backends.megatron.arguments import complete
from backends.megatron.vocabulary import padded_vocab_size
from flagvega.model.shape import Experts, ModelShape

MODEL_KEYS = (
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "kv_channels",
    "num_experts",
    "normalization",
    "swiglu",
    "add_bias_linear",
    "add_qkv_bias",
    "qk_layernorm",
    "position_embedding_type",
)
"""Arguments that decide which tensors a model has."""


def model_facts(settings: Mapping[str, Any], padded_vocab_size: int, tied: bool) -> dict[str, Any]:
    """What decides the names and shapes of the tensors, as a checkpoint records it."""
    return {**{key: settings[key] for key in MODEL_KEYS}, "padded_vocab_size": padded_vocab_size, "tied": tied}


def shape_from_arguments(arguments: Mapping[str, Any]) -> ModelShape:
    """What the arguments, given or completed, build; ConfigError when the vocabulary is not known."""
    settings = complete(arguments)
    learned = settings["position_embedding_type"] == "learned_absolute"
    return ModelShape(
        layers=settings["num_layers"],
        hidden=settings["hidden_size"],
        heads=settings["num_attention_heads"],
        kv_heads=settings["num_query_groups"],
        head_dim=settings["kv_channels"],
        ffn=settings["ffn_hidden_size"],
        vocab=padded_vocab_size(arguments),
        tied=not settings["untie_embeddings_and_output_weights"],
        norm=settings["normalization"],
        gated=settings["swiglu"],
        qkv_bias=settings["add_qkv_bias"] or settings["add_bias_linear"],
        linear_bias=settings["add_bias_linear"],
        qk_norm=settings["qk_layernorm"],
        positions=settings["max_position_embeddings"] if learned else 0,
        experts=_experts(settings),
    )


def _experts(settings: Mapping[str, Any]) -> Experts | None:
    if not settings["num_experts"]:
        return None
    frequency = settings["moe_layer_freq"]
    layers = range(settings["num_layers"])
    return Experts(
        num=settings["num_experts"],
        topk=settings["moe_router_topk"],
        ffn=settings["moe_ffn_hidden_size"] or settings["ffn_hidden_size"],
        shared_ffn=settings["moe_shared_expert_intermediate_size"] or 0,
        shared_gate=bool(settings["moe_shared_expert_gate"] and settings["moe_shared_expert_intermediate_size"]),
        layers=tuple(i for i in layers if (frequency[i] if isinstance(frequency, list) else i % frequency == 0)),
    )
