"""The engine's own configuration classes from flat arguments; as a program, says what they refuse.

``python -P -m backends.megatron.construct`` reads ``{"arguments": ..., "meshes": [overrides, ...]}`` from standard
input and writes a JSON list of refusals to standard output.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from megatron.core.activations import squared_relu
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from megatron.core.transformer import TransformerConfig

from backends.megatron.arguments import FUSIONS, config_fields

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_ACTIVATIONS = {"gelu": F.gelu, "silu": F.silu, "squared_relu": squared_relu}
_OBJECTS: Mapping[str, Mapping[str, Any]] = {
    "params_dtype": _DTYPES,
    "pipeline_dtype": _DTYPES,
    "activation_func": _ACTIVATIONS,
}


def constructor_arguments(arguments: Mapping[str, Any], class_name: str, **overrides: Any) -> dict[str, Any]:
    """``config_fields`` with names resolved to objects, then the overrides."""
    fields = config_fields(arguments, class_name)
    return {name: _OBJECTS[name][value] if name in _OBJECTS else value for name, value in fields.items()} | overrides


def transformer_config(arguments: Mapping[str, Any], fused: bool, **overrides: Any) -> TransformerConfig:
    """TransformerConfig; ``fused`` says whether the device has CUDA kernels."""
    plain = {} if fused else dict.fromkeys(FUSIONS, False)
    return TransformerConfig(**constructor_arguments(arguments, "TransformerConfig", **plain, **overrides))


def optimizer_config(arguments: Mapping[str, Any], **overrides: Any) -> OptimizerConfig:
    """OptimizerConfig."""
    return OptimizerConfig(**constructor_arguments(arguments, "OptimizerConfig", **overrides))


def ddp_config(arguments: Mapping[str, Any], **overrides: Any) -> DistributedDataParallelConfig:
    """DistributedDataParallelConfig."""
    return DistributedDataParallelConfig(
        **constructor_arguments(arguments, "DistributedDataParallelConfig", **overrides)
    )


def refusals(arguments: Mapping[str, Any], meshes: list[dict[str, Any]]) -> list[str]:
    """What the classes refuse, each message once."""
    attempts: list[Callable[[], Any]] = [partial(transformer_config, arguments, False, **mesh) for mesh in meshes]
    attempts += [partial(optimizer_config, arguments), partial(ddp_config, arguments)]
    found: list[str] = []
    for attempt in attempts:
        try:
            attempt()
        except (ValueError, AssertionError, TypeError) as error:
            found.append(str(error).strip() or type(error).__name__)
    return list(dict.fromkeys(found))


def main() -> None:
    """Answer one question from standard input."""
    warnings.simplefilter("ignore")
    question = json.load(sys.stdin)
    json.dump(refusals(question["arguments"], question["meshes"]), sys.stdout)


if __name__ == "__main__":
    main()
