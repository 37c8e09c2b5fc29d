"""Models loaded from HuggingFace folders compute what a plain reading of their definition computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from backends.megatron.huggingface import HuggingFaceWeights
from backends.megatron.pretrained import check_pretrained, read_pretrained
from backends.megatron.shape import shape_from_arguments
from flagvega.errors import ConfigError
from flagvega.model.parameters import total_parameters
from tests.rank.client import Server

BASE: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 60,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
DENSE, MIXTRAL = ("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2")
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": BASE,
    "qwen2": {**BASE, "model_type": "qwen2", "tie_word_embeddings": True, "rope_theta": 1e6},
    "qwen3": {**BASE, "model_type": "qwen3", "head_dim": 16},
    "llama 3.2": {**BASE, "rope_scaling": LLAMA3},
    "mixtral": {**BASE, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {
        **BASE, "model_type": "qwen2_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 24, "norm_topk_prob": False,
    },
}  # fmt: skip


def gated_shapes(prefix: str, names: tuple[str, str, str], hidden: int, ffn: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.{name}.weight": (hidden, ffn) if name == names[2] else (ffn, hidden) for name in names}


def random_weights(config: dict[str, Any]) -> dict[str, Tensor]:
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim", hidden // config["num_attention_heads"])
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    for i in range(config["num_hidden_layers"]):
        layer = {"self_attn.q_proj": (q, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden)}
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
        if config["model_type"] in ("qwen2", "qwen2_moe"):
            shapes |= {f"model.layers.{i}.{name}.bias": shape[:1] for name, shape in layer.items()}
        if config["model_type"] == "qwen3":
            shapes |= {f"model.layers.{i}.self_attn.{which}_norm.weight": (head,) for which in "qk"}
        shapes[f"model.layers.{i}.self_attn.o_proj.weight"] = (hidden, q)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{i}.{norm}.weight"] = (hidden,)
        mlp = f"model.layers.{i}.mlp"
        if "num_local_experts" in config:
            moe = f"model.layers.{i}.block_sparse_moe"
            shapes[f"{moe}.gate.weight"] = (config["num_local_experts"], hidden)
            for j in range(config["num_local_experts"]):
                shapes |= gated_shapes(f"{moe}.experts.{j}", MIXTRAL, hidden, ffn)
        elif "num_experts" in config:
            shapes |= {f"{mlp}.gate.weight": (config["num_experts"], hidden)}
            shapes |= {f"{mlp}.shared_expert_gate.weight": (1, hidden)}
            shapes |= gated_shapes(f"{mlp}.shared_expert", DENSE, hidden, config["shared_expert_intermediate_size"])
            for j in range(config["num_experts"]):
                shapes |= gated_shapes(f"{mlp}.experts.{j}", DENSE, hidden, config["moe_intermediate_size"])
        else:
            shapes |= gated_shapes(mlp, DENSE, hidden, ffn)
    generator = torch.Generator().manual_seed(5)
    drawn = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    return {name: values + (1.0 if "norm" in name else 0.0) for name, values in drawn.items()}


def reference_logits(config: dict[str, Any], weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """The model as its publishers define it, on plain torch."""
    x = weights["model.embed_tokens.weight"][tokens]

    def norm(values: Tensor, name: str) -> Tensor:
        return functional.rms_norm(values, values.shape[-1:], weights[f"{name}.weight"], config["rms_norm_eps"])

    def linear(values: Tensor, name: str) -> Tensor:
        return functional.linear(values, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def mlp(values: Tensor, prefix: str, names: tuple[str, str, str]) -> Tensor:
        gate, up, down = (f"{prefix}.{name}" for name in names)
        return linear(functional.silu(linear(values, gate)) * linear(values, up), down)

    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        x = x + linear(
            attention(config, layer, norm(x, f"{layer}.input_layernorm"), linear, norm), f"{layer}.self_attn.o_proj"
        )
        y = norm(x, f"{layer}.post_attention_layernorm")
        if "num_local_experts" in config:
            moe = f"{layer}.block_sparse_moe"
            shares, chosen = linear(y, f"{moe}.gate").topk(config["num_experts_per_tok"])
            shares = shares.softmax(-1)
            for j in range(config["num_local_experts"]):
                share = (shares * (chosen == j)).sum(-1, keepdim=True)
                x = x + share * mlp(y, f"{moe}.experts.{j}", MIXTRAL)
        elif f"{layer}.mlp.gate.weight" in weights:
            moe = f"{layer}.mlp"
            shares, chosen = linear(y, f"{moe}.gate").softmax(-1).topk(config["num_experts_per_tok"])
            if config["norm_topk_prob"]:
                shares = shares / shares.sum(-1, keepdim=True)
            for j in range(config["num_experts"]):
                share = (shares * (chosen == j)).sum(-1, keepdim=True)
                x = x + share * mlp(y, f"{moe}.experts.{j}", DENSE)
            if config.get("shared_expert_intermediate_size"):
                gate = linear(y, f"{moe}.shared_expert_gate").sigmoid()
                x = x + gate * mlp(y, f"{moe}.shared_expert", DENSE)
        else:
            x = x + mlp(y, f"{layer}.mlp", DENSE)
    head = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
    return linear(norm(x, "model.norm"), head)


def attention(config: dict[str, Any], layer: str, x: Tensor, linear: Any, norm: Any) -> Tensor:
    parts = []
    for which in "qkv":
        part = linear(x, f"{layer}.self_attn.{which}_proj")
        count = config["num_attention_heads"] if which == "q" else config["num_key_value_heads"]
        part = part.unflatten(-1, (count, -1)).transpose(1, 2)
        if config["model_type"].startswith("qwen3") and which != "v":
            part = norm(part, f"{layer}.self_attn.{which}_norm")
        parts.append(part if which == "v" else rotate(part, frequencies(config, part.shape[-1] // 2)))
    query, key, value = parts
    repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    return functional.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(2)


def frequencies(config: dict[str, Any], half: int) -> Tensor:
    """Long waves are slowed by the factor, short ones kept, those between in proportion (Llama 3.1)."""
    plain = config["rope_theta"] ** -(torch.arange(half) / half)
    scaling = config.get("rope_scaling")
    if scaling is None:
        return plain
    turns = scaling["original_max_position_embeddings"] * plain / (2 * torch.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return plain * (kept + (1 - kept) / scaling["factor"])


def rotate(x: Tensor, frequency: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] * frequency
    angles = torch.cat([angles, angles], dim=-1)
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * angles.cos() + turned * angles.sin()


def write_folder(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> Path:
    """In two files with an index, as large models come."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(weights)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: weights[name].contiguous() for name in part}, folder / file)
    index = {name: file for file, part in files.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def run_arguments(folder: Path) -> dict[str, Any]:
    found = {**read_pretrained(folder).arguments, "group_query_attention": True, "vocab_size": 60}
    return {**found, "make_vocab_size_divisible_by": 16, "seq_length": 12, "max_position_embeddings": 12}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the models of all families are."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def computed(server: Server, root: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Logits of the product and of the reference, by family."""
    expected = {}
    tokens = torch.randint(0, 60, (2, 12), generator=torch.Generator().manual_seed(6))
    for name, config in CONFIGS.items():
        weights = random_weights(config)
        folder = write_folder(root / name, config, weights)
        expected[name] = reference_logits(config, weights, tokens)
        (folder / "arguments.json").write_text(json.dumps(run_arguments(folder)))
        np.save(folder / "tokens.npy", tokens.numpy())
    server.call("tests.rank.huggingface_logits", [str(root / name) for name in CONFIGS], root / "log")
    return {name: (torch.from_numpy(np.load(root / name / "logits.npy")), expected[name]) for name in CONFIGS}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_the_models_definition(computed: dict[str, tuple[Tensor, Tensor]], name: str) -> None:
    ours, theirs = computed[name]
    assert theirs.abs().max() > 1
    torch.testing.assert_close(ours[..., :60], theirs, rtol=1e-4, atol=1e-4)
    assert not ours[..., 60:].any()


@pytest.mark.usefixtures("computed")
@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_counted_as_megatron_builds_them(root: Path, name: str) -> None:
    built = json.loads((root / name / "parameters.json").read_text())
    assert total_parameters(shape_from_arguments(run_arguments(root / name))) == built


def test_arguments_that_build_another_model_are_all_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", BASE, random_weights(BASE))
    arguments = run_arguments(folder)
    assert check_pretrained(folder, arguments) == []
    changed = {**arguments, "num_layers": 3, "rotary_base": 500000, "vocab_size": 16}
    assert [fault.where for fault in check_pretrained(folder, changed)] == ["num_layers", "rotary_base", "vocab_size"]


def test_a_window_shorter_than_the_sequence_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", {**BASE, "model_type": "mistral", "sliding_window": 8}, random_weights(BASE))
    assert [fault.where for fault in check_pretrained(folder, run_arguments(folder))] == ["seq_length"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "bert"}, "known: llama, mistral"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "scales its rotary frequencies as .*yarn"),
    ],
)
def test_models_of_other_kinds_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    folder = write_folder(tmp_path / "m", {**BASE, **change}, random_weights(BASE))
    with pytest.raises(ConfigError, match=words):
        HuggingFaceWeights(folder)


def test_tensors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    weights = random_weights(BASE)
    spare = write_folder(tmp_path / "spare", BASE, {**weights, "model.layers.0.self_attn.o_proj.bias": torch.ones(32)})
    with pytest.raises(ConfigError, match=r"no place in a llama model: model.layers.0.self_attn.o_proj.bias"):
        HuggingFaceWeights(spare)
    wide = write_folder(tmp_path / "wide", {**BASE, "intermediate_size": 64}, weights)
    with pytest.raises(ConfigError, match=r"is \[48, 32\], config.json says \[64, 32\]"):
        HuggingFaceWeights(wide).tensor("decoder.layers.0.mlp.linear_fc1.weight")
    with pytest.raises(ConfigError, match="more than the 48 of this run"):
        HuggingFaceWeights(wide, 48).tensor("output_layer.weight")


def test_pickled_weights_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(BASE))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match="save as safetensors"):
        HuggingFaceWeights(tmp_path)
