"""Converted models of further families behind one gateway: greedy tokens are those of the models that were trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rank.gate import Gate
from tests.rank.greedy_tokens import check_greedy_tokens, train_and_convert
from tests.rank.served import Served, needs_vllm
from tests.rank.test_convert import GATED, PLAIN
from tools.bench.serve_engines import free_port

LINES = {
    "qwen2": "llama dp2 | tp2 untie_embeddings_and_output_weights=false",  # with biases
    "mixtral": f"moe ep2 dp2 | tp2 ep2 etp1 sp {PLAIN}",
    "qwen2_moe": f"moe dp2 | tp2 ep2 etp1 sp moe_router_pre_softmax=true {GATED}",
}
WIDE = "hidden_size=128 init_method_std=0.06 tokenizer_type=ByteLevel"
"""Heads that are wide enough for vLLM on CPUs, and logits that lie well apart."""

pytestmark = needs_vllm


@pytest.fixture(scope="module")
def root(gate: Gate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By family: a run that was trained, and its converted model."""
    root = tmp_path_factory.mktemp("families")
    for family, line in LINES.items():
        train_and_convert(gate, f"{line} {WIDE}", root / family)
    return root


@pytest.fixture(scope="module")
def served(root: Path) -> Iterator[Served]:
    given = {"dtype": "float32", "enforce_eager": True, "max_model_len": 32}
    services = [
        {"serve_id": family, "engine_args": {**given, "model": str(root / family / "huggingface"), "port": free_port()}}
        for family in LINES
    ]
    found = Served(root, services)
    try:
        found.wait_for_all()
        yield found
    finally:
        found.stop()


@pytest.mark.parametrize("family", LINES)
def test_greedy_tokens_are_those_of_the_trained_model(root: Path, served: Served, family: str) -> None:
    check_greedy_tokens(root / family, served, family)
