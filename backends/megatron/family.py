"""A run's model as a HuggingFace ``config.json``: the family that computes the same. Control side, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backends.megatron.arguments import complete
from backends.megatron.pretrained import ROPE_SCALING, WITH_TOPK_SWITCH, differences, interpret
from backends.megatron.shape import shape_from_arguments
from backends.megatron.vocabulary import read_vocabulary
from flagvega.errors import ConfigError, Fault
from flagvega.model.shape import ModelShape

ARCHITECTURES: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
"""The families that are written, and the class of each."""

DTYPES: Mapping[str, str] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Our names of element types, and HuggingFace's."""

_WITHOUT_HEAD_DIM = ("qwen2", "qwen2_moe")
"""Families in which a head is ``hidden_size / num_attention_heads`` wide, whatever ``head_dim`` says."""


def describe(arguments: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The ``config.json`` of the model that engine arguments build, for weights of ``dtype`` (fp32, bf16, fp16).

    :raises ConfigError: with everything in which the closest family differs.
    """
    shape, settings = shape_from_arguments(arguments), complete(arguments)
    family = _closest(shape, settings)
    config = _config(family, shape, settings) | _ends(arguments)
    config |= {"architectures": [ARCHITECTURES[family]], "dtype": DTYPES[dtype], "torch_dtype": DTYPES[dtype]}
    unlike = differences(interpret(config, Path(family)), arguments)
    faults = [
        Fault(f"a {family} model has {key} {theirs}, this one {ours}", key, f"written are: {', '.join(ARCHITECTURES)}")
        for key, (theirs, ours) in unlike.items()
    ]
    if family in _WITHOUT_HEAD_DIM and shape.query_width != shape.hidden:
        what = f"a {family} model's heads are {shape.hidden / shape.heads:g} wide, this one's {shape.head_dim}"
        faults.append(Fault(what, "kv_channels", "write another model"))
    if settings["moe_router_load_balancing_type"] == "sinkhorn" and shape.experts:
        faults.append(Fault("no HuggingFace family routes by sinkhorn", "moe_router_load_balancing_type"))
    if faults:
        raise ConfigError(faults)
    return config


def _closest(shape: ModelShape, settings: Mapping[str, Any]) -> str:
    if shape.experts is not None:
        if shape.experts.shared_ffn:
            return "qwen2_moe"
        mixed = shape.experts.layers is not None and len(shape.experts.layers) < shape.layers
        return "qwen3_moe" if shape.qk_norm or settings["moe_router_pre_softmax"] or mixed else "mixtral"
    if shape.qk_norm:
        return "qwen3"
    return "qwen2" if shape.qkv_bias else "llama"


def _config(family: str, shape: ModelShape, settings: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "model_type": family,
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.ffn,
        "hidden_act": "silu",
        "max_position_embeddings": settings["max_position_embeddings"],
        "rms_norm_eps": settings["norm_epsilon"],
        "rope_theta": float(settings["rotary_base"]),
        "rope_scaling": _rope_scaling(settings),
        "tie_word_embeddings": shape.tied,
        "attention_dropout": 0.0,
    }
    if family in ("llama", "qwen3", "qwen3_moe"):
        found["attention_bias"] = False
    if shape.experts is None:
        return found
    experts = shape.experts
    found["num_experts_per_tok"] = experts.topk
    if family not in WITH_TOPK_SWITCH:
        return found | {"num_local_experts": experts.num, "intermediate_size": experts.ffn, "sliding_window": None}
    if family == "qwen2_moe":
        found["shared_expert_intermediate_size"] = experts.shared_ffn
    return found | {
        "num_experts": experts.num,
        "moe_intermediate_size": experts.ffn,
        "norm_topk_prob": not settings["moe_router_pre_softmax"],
        "decoder_sparse_step": 1,
        "mlp_only_layers": [i for i in range(shape.layers) if not shape.has_experts(i)],
    }


def _rope_scaling(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    if not settings["use_rope_scaling"]:
        return None
    return {"rope_type": "llama3", "factor": settings["rope_scaling_factor"], **ROPE_SCALING}


def _ends(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The vocabulary without the rows that pad it, and the token that ends a text."""
    vocabulary = read_vocabulary(arguments)
    return {"vocab_size": vocabulary.size, "bos_token_id": None, "eos_token_id": vocabulary.eod, "pad_token_id": None}
