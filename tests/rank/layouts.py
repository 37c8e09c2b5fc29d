"""Layouts of the equality gate: one line each, which is also how a failing one is named and run again.

``llama tp2 sp dp2 | dp3 split=[1,3] micro=3``: a model, then meshes divided by ``|`` (degrees that are 1 left out),
then engine arguments. ``micro``, ``split``, ``vpp`` and ``slow`` are short for the keys in ``SHORT``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import lcm
from typing import Any

import yaml

BATCH = 12
"""Samples of a step: dp of 1, 2, 3, 4 and 6 divide it."""
STEPS = 10

COMMON: Mapping[str, Any] = {
    "num_layers": 4,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "seq_length": 32,
    "max_position_embeddings": 32,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "calculate_per_token_loss": True,
    "global_batch_size": BATCH,
    "train_iters": STEPS,
    "eval_iters": 0,
    "seed": 4321,
    "clip_grad": 1.0,
    "weight_decay": 0.01,
    "lr": 1e-3,
    "lr_decay_style": "constant",
    "log_interval": 1,
    "tokenizer_type": "NullTokenizer",
    "vocab_size": 508,  # and one for the end of a document: 509, a prime
    "make_vocab_size_divisible_by": 64,
}
LLAMA: Mapping[str, Any] = {
    **COMMON,
    "normalization": "RMSNorm",
    "swiglu": True,
    "ffn_hidden_size": 64,
    "group_query_attention": True,
    "num_query_groups": 2,
    "add_qkv_bias": True,
    "disable_bias_linear": True,
    "position_embedding_type": "rope",
    "untie_embeddings_and_output_weights": True,
}
MODELS: Mapping[str, Mapping[str, Any]] = {
    "gpt": COMMON,  # LayerNorm, GELU, biases, learned positions, tied embeddings
    "llama": LLAMA,
    "moe": {
        **LLAMA,
        "num_layers": 2,
        "num_experts": 4,
        "moe_router_topk": 2,
        "moe_router_load_balancing_type": "seq_aux_loss",
        "moe_aux_loss_coeff": 0.01,
        "moe_token_dispatcher_type": "alltoall",
    },
}
SHORT: Mapping[str, str] = {
    "micro": "micro_batch_size",
    "split": "hetero_pipeline_layer_split",
    "vpp": "num_virtual_stages_per_pipeline_rank",
    "distopt": "use_distributed_optimizer",
    "chips": "hetero_device_types",
    "mask": "apply_sft_dataset_separated_loss_mask_if_existed",
}
SAME_RESULT = re.compile(
    r"micro_batch_size|use_distributed_optimizer|overlap_\w+|recompute_\w+|hetero_\w+|pipeline_\w+|moe_token_dispatcher_type"
    r"|num_virtual_stages_per_pipeline_rank|decoder_(first|last)_pipeline_num_layers|slow|align_\w+"
)
"""Keys that change where and when things are computed, never what: the one-process run goes without them."""
DEGREE = re.compile(r"(tp|cp|ep|dp|pp|etp)(\d+)")


@dataclass(frozen=True)
class Layout:
    """A line, taken apart."""

    model: str
    meshes: tuple[Mapping[str, int], ...]
    changes: Mapping[str, Any]

    @property
    def num_ranks(self) -> int:
        """Ranks of all meshes."""
        return sum(mesh["tp"] * mesh["cp"] * mesh["dp"] * mesh["pp"] for mesh in self.meshes)

    @property
    def reference(self) -> str:
        """The line of the one-process run that computes the same."""
        kept = [f"{name}={_compact(value)}" for name, value in self.changes.items() if not SAME_RESULT.fullmatch(name)]
        return " ".join([self.model, *sorted(kept)])

    def config(self) -> dict[str, Any]:
        """The YAML of the run, but for where it is."""
        changes = {"micro_batch_size": self._micro_batch_size(), **self.changes}
        slow = changes.pop("slow", None)
        return {
            "experiment": {"runner": {"nproc_per_node": self.num_ranks}},
            "train": {"model": {**MODELS[self.model], **self._degrees(), **changes}},
            **({} if slow is None else {"bridge": {"slow_boundaries": slow}}),
        }

    def _micro_batch_size(self) -> int:
        """Such that a step has two or three global micro-batches and every dp divides them."""
        samples = lcm(*(mesh["dp"] for mesh in self.meshes))
        if self.num_ranks == 1:
            samples = BATCH
        while samples < 4:
            samples *= 2
        return samples // self.meshes[0]["dp"]

    def _degrees(self) -> dict[str, Any]:
        first = self.meshes[0]
        if len(self.meshes) == 1:
            return {
                "tensor_model_parallel_size": first["tp"],
                "context_parallel_size": first["cp"],
                "expert_model_parallel_size": first["ep"],
                "pipeline_model_parallel_size": first["pp"],
                "sequence_parallel": bool(first["sp"]),
                **({"expert_tensor_parallel_size": first["etp"]} if first["etp"] else {}),
            }
        etps = [mesh["etp"] or mesh["tp"] for mesh in self.meshes]
        has_etp = any(mesh["etp"] for mesh in self.meshes)
        return {
            "enable_hetero": True,
            "hetero_process_meshes": [mesh[name] for mesh in self.meshes for name in ("tp", "cp", "ep", "dp", "pp")],
            "hetero_device_types": ["cpu"] * len(self.meshes),
            "hetero_sequence_parallel": [bool(mesh["sp"]) for mesh in self.meshes],
            **({"expert_tensor_parallel_size_per_process_mesh": etps} if has_etp else {}),
        }


def read_layout(line: str) -> Layout:
    """Take a line apart."""
    model, *words = line.split()
    meshes: list[dict[str, int]] = [_empty_mesh()]
    changes: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if equals:
            changes[SHORT.get(name, name)] = yaml.safe_load(value)
        elif word == "|":
            meshes.append(_empty_mesh())
        elif word == "sp":
            meshes[-1]["sp"] = 1
        else:
            degree = DEGREE.fullmatch(word)
            assert degree, f"{word} of {line}"
            meshes[-1][degree[1]] = int(degree[2])
    return Layout(model, tuple(meshes), changes)


def _empty_mesh() -> dict[str, int]:
    return {"tp": 1, "cp": 1, "ep": 1, "dp": 1, "pp": 1, "etp": 0, "sp": 0}


def _compact(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1_000_000)
    return text.removesuffix("...\n").strip().replace(" ", "")
