"""Checkpoints of any layout become HuggingFace folders that hold the same weights and compute the same."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from backends.megatron.convert import Question, convert, read_parameter
from backends.megatron.family import describe
from backends.megatron.huggingface import VOCABULARY_ROWS, HuggingFaceWeights
from backends.megatron.saved import SavedTensors
from flagvega.cli import main
from flagvega.errors import ConfigError, ExitCode
from flagvega.records import read_json
from tests.rank.client import Server
from tests.rank.gate import Gate
from tests.rank.served import SERVING_PYTHON
from tests.rank.test_huggingface import reference_logits

NUM_TOKENS = 509
"""Of the gate's models; 512 rows are trained."""
PLAIN = "add_qkv_bias=false"
GATED = "moe_shared_expert_intermediate_size=48 moe_shared_expert_gate=true"
WIDE = "init_method_std=0.06"
LINES = {
    "qwen2": "llama dp2 | tp2",
    "llama": f"llama pp2 vpp=2 micro=2 untie_embeddings_and_output_weights=false {PLAIN}",
    "qwen3": f"llama tp2 sp | dp2 qk_layernorm=true kv_channels=16 {PLAIN}",
    "mixtral": f"moe ep2 dp2 | tp2 ep2 etp1 sp {PLAIN}",
    "qwen2_moe": f"moe dp2 | tp2 ep2 etp1 sp moe_router_pre_softmax=true {GATED}",
    "qwen3_moe": f"moe tp2 etp2 sp qk_layernorm=true moe_router_pre_softmax=true moe_layer_freq=[0,1] {PLAIN}",
}
"""By family, a layout that trains it."""


@pytest.fixture(scope="module")
def root(gate: Gate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By family: a run that was trained for two steps, its arguments, tokens, and the converted folder."""
    root = tmp_path_factory.mktemp("converted")
    tokens = torch.randint(0, NUM_TOKENS, (2, 24), generator=torch.Generator().manual_seed(6))
    for family, line in LINES.items():
        gate.run(f"{line} {WIDE}", root / family, exit_interval=2)
        arguments = read_json(root / family / "job" / "rank.json")["arguments"]
        (root / family / "arguments.json").write_text(json.dumps(arguments))
        np.save(root / family / "tokens.npy", tokens.numpy())
        convert(question(root / family, arguments), lambda share: None)
    return root


def question(run: Path, arguments: Mapping[str, Any], **changes: Any) -> Question:
    asked = {"checkpoint": str(run / "checkpoints"), "folder": str(run / "huggingface"), "dtype": "fp32"}
    return Question(**{"arguments": arguments, "max_file_bytes": 100_000, **asked, **changes})


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: values for file in folder.glob("*.safetensors") for name, values in load_file(file).items()}


@pytest.fixture(scope="module")
def logits(server: Server, root: Path) -> dict[str, Tensor]:
    """Of the product's own model, on one rank, from each checkpoint itself."""
    server.call("tests.rank.huggingface_logits", [str(root / family) for family in LINES], root / "log")
    return {family: torch.from_numpy(np.load(root / family / "logits.npy"))[..., :NUM_TOKENS] for family in LINES}


@pytest.mark.parametrize("family", LINES)
def test_a_folder_holds_the_checkpoints_weights_to_the_bit(root: Path, family: str) -> None:
    folder = root / family / "huggingface"
    config = read_json(folder / "config.json")
    assert (config["model_type"], config["vocab_size"]) == (family, NUM_TOKENS)
    read = HuggingFaceWeights(folder)
    saved = SavedTensors(next((root / family / "checkpoints").iterdir()))
    for name in read.names():
        expected = read_parameter(saved, name)
        rows = NUM_TOKENS if name in VOCABULARY_ROWS else len(expected)
        assert torch.equal(read.tensor(name), expected[:rows]), name


@pytest.mark.parametrize("family", LINES)
def test_a_folder_computes_the_checkpoints_logits(root: Path, logits: dict[str, Tensor], family: str) -> None:
    folder = root / family / "huggingface"
    tokens = torch.from_numpy(np.load(root / family / "tokens.npy"))
    theirs = reference_logits(read_json(folder / "config.json"), tensors(folder), tokens)
    assert logits[family].abs().max() > 1
    assert (logits[family] - theirs).abs().max() < 1e-5


@pytest.mark.skipif(not SERVING_PYTHON.exists(), reason="transformers is in .venv-serve, which is not made")
def test_transformers_computes_the_checkpoints_logits(root: Path, logits: dict[str, Tensor]) -> None:
    program = [str(SERVING_PYTHON), str(Path(__file__).with_name("transformers_logits.py"))]
    runs = [str(root / family) for family in LINES]
    done = subprocess.run([*program, *runs], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for family in LINES:
        theirs = torch.from_numpy(np.load(root / family / "transformers.npy"))
        assert (logits[family] - theirs).abs().max() < 1e-5, family


def test_the_action_converts_the_runs_newest_checkpoint(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config-path", str(root / "qwen3"), "--config-name", "experiment", "action=convert", "output=json"]
    assert main([*words, f"to={tmp_path / 'new'}"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert (written["family"], written["step"], written["dtype"]) == ("qwen3", 2, "float32")
    whole = tensors(root / "qwen3" / "huggingface")
    assert all(torch.equal(values, whole[name]) for name, values in tensors(tmp_path / "new").items())
    assert main([*words, "dtype=fp8"]) == ExitCode.CONFIG


def test_large_models_come_in_files_with_an_index(root: Path) -> None:
    folder = root / "mixtral" / "huggingface"
    index = read_json(folder / "model.safetensors.index.json")
    sizes = {file.name: file.stat().st_size for file in folder.glob("*.safetensors")}
    assert len(sizes) > 3
    assert set(index["weight_map"].values()) == set(sizes)
    assert index["metadata"]["total_size"] == sum(values.nbytes for values in tensors(folder).values())
    largest = max(values.nbytes for values in tensors(folder).values())
    assert max(sizes.values()) < largest + 10_000


def test_half_precision_is_rounded_and_a_second_time_changes_nothing(root: Path, tmp_path: Path) -> None:
    arguments = read_json(root / "qwen2" / "arguments.json")
    asked = question(root / "qwen2", arguments, folder=str(tmp_path / "half"), dtype="bf16")
    convert(asked, lambda share: None)
    whole = tensors(root / "qwen2" / "huggingface")
    halves = tensors(tmp_path / "half")
    assert all(torch.equal(values, whole[name].bfloat16()) for name, values in halves.items())
    assert "there already" in convert(asked, lambda share: None)["notes"][-1]
    with pytest.raises(ConfigError, match="holds something else"):
        convert(question(root / "qwen2", arguments, folder=str(tmp_path / "half")), lambda share: None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"normalization": "LayerNorm"}, "a qwen2 model has normalization RMSNorm, this one LayerNorm"),
        ({"swiglu": False}, "swiglu True"),
        ({"qk_layernorm": True}, "a qwen3 model has add_qkv_bias False"),
        ({"kv_channels": 16}, "heads are 12 wide, this one's 16"),
        ({"position_embedding_type": "learned_absolute"}, "position_embedding_type rope"),
    ],
)
def test_models_that_no_family_computes_are_refused(root: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        describe({**read_json(root / "qwen2" / "arguments.json"), **change}, "fp32")


def test_another_models_yaml_is_refused(root: Path) -> None:
    arguments = {**read_json(root / "qwen2" / "arguments.json"), "num_layers": 8}
    asked = question(root / "qwen2", arguments, folder=str(root / "other"))
    with pytest.raises(ConfigError, match="has num_layers 4, the YAML's 8"):
        convert(asked, lambda share: None)
    assert not (root / "other").exists()


def test_an_index_that_would_run_code_is_not_opened(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ConfigError, match="mkdir does not belong in an index"):
        SavedTensors(tmp_path)
    assert not (tmp_path / "ran").exists()
