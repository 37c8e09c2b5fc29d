"""From a trained checkpoint to tokens over HTTP: the real vLLM, started, asked and stopped by the product."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from backends.megatron.convert import Question, convert
from flagvega.records import read_json
from flagvega.run.directory import RunDirectory
from flagvega.run.processes import find_processes
from tests.conftest import ROOT
from tests.rank.gate import Gate

SERVING_PYTHON = ROOT / ".venv-serve" / "bin" / "python"
LINE = "llama dp2 | tp2 kv_channels=32 add_qkv_bias=false init_method_std=0.06 tokenizer_type=ByteLevel"
PROMPTS, PROMPT_LENGTH, LENGTH = 20, 8, 20
CLOSE = 1e-4
"""Two logits closer than this may change places."""
START_S = 280.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not SERVING_PYTHON.exists(), reason="vLLM is in .venv-serve, which is not made"),
]


class Served:
    """A run that serves."""

    def __init__(self, root: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.directory = RunDirectory(root / "served")
        given = {"model": str(root / "huggingface"), "port": self.port, "enforce_eager": True, "max_model_len": 32}
        given["dtype"] = "float32"  # left to itself, vLLM rounds
        config = {
            "experiment": {"exp_name": "served", "exp_dir": str(self.directory.root), "task": {"type": "serve"}},
            "serve": [{"serve_id": "m", "engine_args": given}],
        }
        (root / "serve.yaml").write_text(yaml.safe_dump(config))
        where = ["--config-path", str(root), "--config-name", "serve"]
        flagvega(*where, "action=run", "detach=true")

    def wait(self) -> None:
        deadline = time.monotonic() + START_S
        while not any(event["event"] == "serving" for event in self.directory.events(0)):
            run = self.directory.read()
            assert run is not None
            assert not run.finished, run.reason
            assert time.monotonic() < deadline
            time.sleep(0.5)

    def ask(self, **question: Any) -> dict[str, Any]:
        body = json.dumps({"model": "m", "temperature": 0, **question}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/completions", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return found


def flagvega(*words: str) -> None:
    subprocess.run([sys.executable, "run.py", *words], cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def run(gate: Gate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained over two meshes, converted."""
    root = tmp_path_factory.mktemp("served")
    gate.run(LINE, root, exit_interval=3)
    arguments = read_json(root / "job" / "rank.json")["arguments"]
    (root / "arguments.json").write_text(json.dumps(arguments))
    convert(Question(arguments, str(root / "checkpoints"), str(root / "huggingface"), "fp32"), lambda share: None)
    return root


@pytest.fixture(scope="module")
def served(run: Path) -> Iterator[Served]:
    """The model behind vLLM."""
    found = Served(run)
    try:
        found.wait()
        yield found
    finally:
        flagvega("action=stop", f"run_dir={found.directory.root}")
    ended = found.directory.read()
    assert ended is not None
    assert (ended.state, ended.exit_code) == ("stopped", 143)
    assert find_processes(ended.token) == []


def test_greedy_tokens_are_those_of_the_trained_model(run: Path, served: Served) -> None:
    prompts = np.random.default_rng(7).integers(0, 256, (PROMPTS, PROMPT_LENGTH))
    np.save(run / "prompts.npy", prompts)
    program = [sys.executable, "-m", "tests.rank.greedy", str(run), str(LENGTH)]
    done = subprocess.run(program, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected, gaps = np.load(run / "tokens.npy"), np.load(run / "gaps.npy")

    def tokens(prompt: list[int]) -> list[int]:
        answer = served.ask(prompt=prompt, max_tokens=LENGTH, ignore_eos=True, return_token_ids=True)
        found: list[int] = answer["choices"][0]["token_ids"]
        return found

    with ThreadPoolExecutor(PROMPTS) as pool:
        answers = list(pool.map(tokens, prompts.tolist()))
    compared = 0
    for answer, ours, gap in zip(answers, expected.tolist(), gaps, strict=True):
        clear = next((i for i, each in enumerate(gap) if each < CLOSE), LENGTH)
        assert answer[:clear] == ours[:clear]
        compared += clear
    assert compared > PROMPTS * LENGTH / 2


def test_text_goes_through_the_converted_tokenizer(served: Served) -> None:
    answer = served.ask(prompt="12 + 3 = ", max_tokens=4, echo=True)
    assert answer["choices"][0]["text"].startswith("12 + 3 = ")
    assert answer["usage"]["prompt_tokens"] == len("12 + 3 = ")


def test_what_cannot_be_answered_is_refused_by_the_server(served: Served) -> None:
    with pytest.raises(urllib.error.HTTPError, match="400"):
        served.ask(prompt=[1] * 40, max_tokens=4)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        served.ask(model="another", prompt=[1], max_tokens=1)


def test_what_is_being_answered_is_finished_when_it_is_stopped(served: Served) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(served.ask, prompt=[1, 2, 3], n=256, max_tokens=28, ignore_eos=True, temperature=1)
        time.sleep(0.3)
        assert not answer.done()
        flagvega("action=stop", f"run_dir={served.directory.root}")
        usage = answer.result()["usage"]
    assert usage["completion_tokens"] == 256 * 28
