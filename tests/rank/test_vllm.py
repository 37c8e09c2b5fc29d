"""From a trained checkpoint to tokens over HTTP: the real vLLM, started, asked and stopped by the product."""

from __future__ import annotations

import time
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.rank.gate import Gate
from tests.rank.greedy_tokens import check_greedy_tokens, train_and_convert
from tests.rank.served import Served, flagvega, needs_vllm
from tools.bench.serve_engines import free_port

LINE = "llama dp2 | tp2 kv_channels=32 add_qkv_bias=false init_method_std=0.06 tokenizer_type=ByteLevel"

pytestmark = needs_vllm


@pytest.fixture(scope="module")
def run(gate: Gate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained over two meshes, converted."""
    root = tmp_path_factory.mktemp("served")
    train_and_convert(gate, LINE, root)
    return root


@pytest.fixture(scope="module")
def served(run: Path) -> Iterator[Served]:
    """The model behind vLLM, without a gateway."""
    given = {"model": str(run / "huggingface"), "port": free_port(), "enforce_eager": True, "max_model_len": 32}
    given["dtype"] = "float32"  # left to itself, vLLM rounds
    found = Served(run, [{"serve_id": "m", "engine_args": given}])
    try:
        found.wait_for_all()
        yield found
    finally:
        found.stop()


def test_greedy_tokens_are_those_of_the_trained_model(run: Path, served: Served) -> None:
    check_greedy_tokens(run, served, "m")


def test_text_goes_through_the_converted_tokenizer(served: Served) -> None:
    answer = served.ask("m", prompt="12 + 3 = ", max_tokens=4, echo=True)
    assert answer["choices"][0]["text"].startswith("12 + 3 = ")
    assert answer["usage"]["prompt_tokens"] == len("12 + 3 = ")


def test_what_cannot_be_answered_is_refused_by_the_server(served: Served) -> None:
    with pytest.raises(urllib.error.HTTPError, match="400"):
        served.ask("m", prompt=[1] * 40, max_tokens=4)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        served.ask("another", prompt=[1], max_tokens=1)


def test_what_is_being_answered_is_finished_when_it_is_stopped(served: Served) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(served.ask, "m", prompt=[1, 2, 3], n=256, max_tokens=28, ignore_eos=True, temperature=1)
        time.sleep(0.3)
        assert not answer.done()
        flagvega("action=stop", f"run_dir={served.directory.root}")
        usage = answer.result()["usage"]
    assert usage["completion_tokens"] == 256 * 28
