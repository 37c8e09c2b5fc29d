"""Engine arguments: one row a key, their defaults, and what they set in the engine's configuration classes.

The table is ``arguments.csv``, written by ``tools/make_arguments.py``. A key that the user leaves out has the
default of Megatron-LM's command line; where ours differs on purpose, ``tools/argument_rules.yaml`` says why.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from backends.megatron.fields import fields
from flagvega.config.keys import Key

TABLE = Path(__file__).with_name("arguments.csv")

WITHOUT_EFFECT = ("ignored", "unsupported")

FUSIONS = (
    "apply_rope_fusion",
    "bias_activation_fusion",
    "bias_dropout_fusion",
    "gradient_accumulation_fusion",
    "masked_softmax_fusion",
    "persist_layer_norm",
)
"""TransformerConfig fields that need CUDA kernels; the rank program turns them off elsewhere."""


@cache
def keys() -> Mapping[str, Key]:
    """Every engine argument by name; a field that the installed engine lacks makes its key unsupported."""
    with TABLE.open(newline="") as file:
        found = [_key(row) for row in csv.DictReader(file)]
    return {key.name: key if _has_fields(key) else _lacking(key) for key in found}


def supported() -> dict[str, Key]:
    """The keys that do something."""
    return {name: key for name, key in keys().items() if key.target not in WITHOUT_EFFECT}


@cache
def _defaults() -> Mapping[str, Any]:
    return {name: key.default for name, key in supported().items()}


def defaults() -> dict[str, Any]:
    """The default of every supported key."""
    return dict(_defaults())


@cache
def negations() -> Mapping[str, str]:
    """``no_x`` and ``disable_x`` -> ``x``, where both are supported."""
    known = supported()
    positive = {key.target: name for name, key in known.items() if not key.target.startswith("not ")}
    found = {name: positive[key.target[4:]] for name, key in known.items() if key.target.startswith("not ")}
    named = {name: name[3:] for name in known if name.startswith("no_") and name[3:] in known}
    return found | named


def complete(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Every supported key: as given, else its default, else what follows from the others.

    Of a key and its negation both have the value that the given one implies.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    found = defaults() | {name: value for name, value in given.items() if name in _defaults()}
    for negative, positive in negations().items():
        found[positive] = not found[negative] if negative in given else found[positive]
        found[negative] = not found[positive]
    if found["use_rotary_position_embeddings"]:
        found["position_embedding_type"] = "rope"
    if found["use_te"] and "transformer_impl" not in given:
        found["transformer_impl"] = "transformer_engine"
    if found["rotary_interleaved"] and "apply_rope_fusion" not in given:
        found |= {"apply_rope_fusion": False, "no_rope_fusion": True}
    if found["bf16"]:
        found["accumulate_allreduce_grads_in_fp32"] = given.get("accumulate_allreduce_grads_in_fp32", True)
    if found["split"] is None:
        found["split"] = "969,30,1"
    if found["hidden_size"] and found["num_attention_heads"]:
        found["kv_channels"] = found["kv_channels"] or found["hidden_size"] // found["num_attention_heads"]
    if not found["group_query_attention"]:
        found["num_query_groups"] = found["num_attention_heads"]
    if found["hidden_size"]:
        found["ffn_hidden_size"] = given.get("ffn_hidden_size") or _ffn_hidden_size(found)
    return found


def config_fields(arguments: Mapping[str, Any], class_name: str) -> dict[str, Any]:
    """Constructor arguments of an engine class, from given or completed arguments; no torch.

    Degrees, recompute, loss, distributed optimizer and tying come from the plan and are not in here. Names
    stand for objects: ``activation_func`` is gelu, silu or squared_relu, ``params_dtype`` (and the
    TransformerConfig's ``pipeline_dtype``) fp32, bf16 or fp16; :mod:`backends.megatron.construct` resolves them.
    """
    settings = complete(arguments)
    found: dict[str, Any] = {}
    for name, key in supported().items():
        if key.target.startswith("not "):
            continue
        for target in key.target.split():
            if target.startswith(f"{class_name}.") and settings[name] is not None:
                found[target.removeprefix(f"{class_name}.")] = settings[name]
    dtype = next((name for name in ("bf16", "fp16") if settings[name]), "fp32")
    if class_name == "TransformerConfig":
        found |= _transformer_fields(settings) | {"params_dtype": dtype, "pipeline_dtype": dtype}
    elif class_name == "OptimizerConfig":
        found["params_dtype"] = dtype
    return found


def _transformer_fields(settings: Mapping[str, Any]) -> dict[str, Any]:
    activation = "silu" if settings["swiglu"] else "squared_relu" if settings["squared_relu"] else "gelu"
    fused = {"silu": settings["bias_swiglu_fusion"], "gelu": settings["bias_gelu_fusion"]}.get(activation, False)
    return {
        "activation_func": activation,
        "bias_activation_fusion": fused and (settings["swiglu"] or settings["add_bias_linear"]),
    }


def _ffn_hidden_size(settings: Mapping[str, Any]) -> int:
    """As Megatron-LM: 4 x hidden, two thirds of it in multiples of 64 for SwiGLU; as FlagScale with ``multiple_of``."""
    hidden = settings["hidden_size"]
    if not settings["swiglu"]:
        return 4 * int(hidden)
    if multiple_of := settings["multiple_of"]:
        width = int(int(4 * hidden * 2 / 3) * (settings["hidden_dim_multiplier"] or 1))
        return int(multiple_of * -(-width // multiple_of))
    return int(4 * hidden * 2 / 3) // 64 * 64


def _key(row: Mapping[str, str]) -> Key:
    return Key(
        name=row["key"],
        type=row["type"],  # type: ignore[arg-type]  # the table is ours, and a test reads every row
        default=json.loads(row["default"]) if row["default"] else None,
        choices=tuple(json.loads(row["choices"])) if row["choices"] else (),
        target=row["target"],
        note=row["note"],
    )


def _has_fields(key: Key) -> bool:
    targets = [target.split(".") for target in key.target.split() if "." in target]
    return all(field in fields()[class_name] for class_name, field in targets)


def _lacking(key: Key) -> Key:
    return replace(key, target="unsupported", note="the installed megatron-core has no such field")
