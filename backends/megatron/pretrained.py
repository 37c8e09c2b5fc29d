"""What a HuggingFace folder's ``config.json`` says, as engine arguments: control side, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.megatron.arguments import complete
from backends.megatron.shape import shape_from_arguments
from backends.megatron.vocabulary import padded_vocab_size, read_json
from flagvega.errors import ConfigError, Fault
from flagvega.model.shape import Experts, ModelShape

FAMILIES = ("llama", "mistral", "aquila", "qwen2", "qwen3", "mixtral", "qwen2_moe", "qwen3_moe")
"""Values of ``model_type`` whose tensors are known."""

WITH_QKV_BIAS = ("qwen2", "qwen2_moe")
WITH_QK_NORM = ("qwen3", "qwen3_moe")
WITH_TOPK_SWITCH = ("qwen2_moe", "qwen3_moe")
"""Families whose ``norm_topk_prob`` says whether the chosen experts' shares sum to one; elsewhere they do."""

ROPE_SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What megatron-core's ``use_rope_scaling``, which is Llama 3.1's, has fixed; the factor is an argument."""


@dataclass(frozen=True)
class Pretrained:
    """A model on disk."""

    folder: Path
    family: str
    shape: ModelShape
    arguments: Mapping[str, Any]
    """What a run that loads it must say."""
    window: int | None
    """Tokens that attention looks back, None: all."""


def is_pretrained(path: Path) -> bool:
    """Whether ``path`` is a HuggingFace folder."""
    return (path / "config.json").is_file()


def read_pretrained(folder: Path) -> Pretrained:
    """The model of a folder; ConfigError when it is of a kind that is not known."""
    return interpret(read_json(folder / "config.json"), folder)


def interpret(config: Mapping[str, Any], folder: Path) -> Pretrained:
    """The model that a ``config.json`` describes; ConfigError when it is of a kind that is not known."""
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ConfigError(Fault(f"{folder} holds a model of type '{family}'", "load", f"known: {', '.join(FAMILIES)}"))
    if config.get("hidden_act", "silu") != "silu":
        raise ConfigError(Fault(f"{folder} has activation '{config['hidden_act']}'", "load", "known: silu"))
    shape = _read_shape(config, family)
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    return Pretrained(folder, family, shape, _arguments(config, family, shape, folder), window)


def differences(found: Pretrained, arguments: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Argument -> (the model's value, the run's), of all that make another model; the vocabulary is not compared."""
    settings = complete(arguments)
    if settings["num_experts"]:
        shape = shape_from_arguments(arguments)
        assert shape.experts is not None
        settings |= {"moe_layer_freq": _expert_layers(shape), "moe_ffn_hidden_size": shape.experts.ffn}
    return {key: (value, settings[key]) for key, value in found.arguments.items() if settings[key] != value}


def _expert_layers(shape: ModelShape) -> Any:
    """``moe_layer_freq`` in one spelling."""
    has_experts = [int(shape.has_experts(layer)) for layer in range(shape.layers)]
    return 1 if all(has_experts) else has_experts


def check_pretrained(folder: Path, arguments: Mapping[str, Any]) -> list[Fault]:
    """Where the run's arguments build another model than the folder holds, all of it."""
    try:
        found = read_pretrained(folder)
    except ConfigError as error:
        return list(error.faults)
    faults = [
        Fault(f"{folder} has {key} {value}, not {given}", key, f"write {key}: {_yaml(value)}")
        for key, (value, given) in differences(found, arguments).items()
    ]
    if found.window is not None and arguments["seq_length"] > found.window:
        what = f"{folder} attends to {found.window} tokens back, seq_length is {arguments['seq_length']}"
        faults.append(Fault(what, "seq_length", f"write seq_length: {found.window} or less"))
    rows = padded_vocab_size(arguments)
    if rows < found.shape.vocab:
        what = f"{folder} has {found.shape.vocab} token ids, more than the {rows} of this run"
        faults.append(Fault(what, "vocab_size", f"write vocab_size: {found.shape.vocab}"))
    return faults


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _read_shape(config: Mapping[str, Any], family: str) -> ModelShape:
    heads = config["num_attention_heads"]
    num_experts = config.get("num_local_experts") or config.get("num_experts")
    experts = None
    if num_experts:
        width = config.get("moe_intermediate_size") or config["intermediate_size"]
        shared = config.get("shared_expert_intermediate_size") or 0
        chosen = config["num_experts_per_tok"]
        experts = Experts(num_experts, chosen, width, shared, shared_gate=shared > 0, layers=_sparse_layers(config))
    return ModelShape(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        ffn=config["intermediate_size"],
        vocab=config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings")),
        qkv_bias=family in WITH_QKV_BIAS,
        qk_norm=family in WITH_QK_NORM,
        experts=experts,
    )


def _sparse_layers(config: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The layers with experts; None: all."""
    dense, step = config.get("mlp_only_layers") or (), config.get("decoder_sparse_step", 1)
    layers = range(config["num_hidden_layers"])
    found = tuple(i for i in layers if i not in dense and (i + 1) % step == 0)
    return None if len(found) == len(layers) else found


def _arguments(config: Mapping[str, Any], family: str, shape: ModelShape, folder: Path) -> dict[str, Any]:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    found = {
        "num_layers": shape.layers,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "num_query_groups": shape.kv_heads,
        "kv_channels": shape.head_dim,
        "untie_embeddings_and_output_weights": not shape.tied,
        "add_qkv_bias": shape.qkv_bias,
        "qk_layernorm": shape.qk_norm,
        "swiglu": True,
        "add_bias_linear": False,
        "normalization": "RMSNorm",
        "apply_layernorm_1p": False,
        "norm_epsilon": config.get("rms_norm_eps", 1e-6),
        "position_embedding_type": "rope",
        "rotary_percent": 1.0,
        "rotary_interleaved": False,
        "rotary_seq_len_interpolation_factor": None,
        "rotary_base": int(config.get("rope_theta") or rope.get("rope_theta") or 10000),
    }
    found |= _rope_scaling(rope, folder)
    if shape.experts is None:
        return found | {"ffn_hidden_size": shape.ffn, "num_experts": None}
    experts = shape.experts
    if experts.layers is not None:
        found["ffn_hidden_size"] = shape.ffn
    # Softmax over the chosen experts' logits is softmax over all of them, chosen, and made to sum to one again.
    renormalized = family not in WITH_TOPK_SWITCH or bool(config.get("norm_topk_prob"))
    return found | {
        "num_experts": experts.num,
        "moe_layer_freq": _expert_layers(shape),
        "moe_router_topk": experts.topk,
        "moe_ffn_hidden_size": experts.ffn,
        "moe_router_pre_softmax": not renormalized,
        "moe_router_score_function": "softmax",
        "moe_router_num_groups": None,
        "moe_router_topk_scaling_factor": None,
        "moe_shared_expert_intermediate_size": experts.shared_ffn or None,
        "moe_shared_expert_gate": experts.shared_gate,
        "moe_apply_probs_on_input": False,
    }


def _rope_scaling(rope: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Arguments that scale rotary frequencies as Llama 3.1 does; ConfigError for another scaling."""
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return {"use_rope_scaling": False}
    if kind != "llama3" or any(rope.get(key) != value for key, value in ROPE_SCALING.items()):
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        fix = f"known: llama3, with {ROPE_SCALING}"
        raise ConfigError(Fault(f"{folder} scales its rotary frequencies as {scaling}", "load", fix))
    return {"use_rope_scaling": True, "rope_scaling_factor": float(rope["factor"])}
