"""One real vLLM reads prompts, another writes the answers: greedy tokens are those of one that does both."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from flagvega.run.directory import RunDirectory
from flagvega.run.processes import find_processes
from tests.rank.test_vllm import SERVING_PYTHON, flagvega
from tools.bench.tiny_model import VOCABULARY, make_tiny_model

START_S = 400.0
BLOCK = 32
LENGTHS = (1, 2, 31, 32, 33, 34, 63, 64, 65, 66, 100, 128, 129, 130, 150, 200, 220, 240, 250, 255)
"""Of prompts: around whole blocks of the cache, and around what is read in one step."""
NUM_TOKENS = 20

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not SERVING_PYTHON.exists(), reason="vLLM is in .venv-serve, which is not made"),
]


def make_model(folder: Path) -> None:
    """A small Llama with random weights, whose logits lie well apart."""
    make_tiny_model(folder)
    config = json.loads((folder / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    torch.manual_seed(11)
    weights = {"model.embed_tokens.weight": torch.randn(VOCABULARY, hidden), "model.norm.weight": torch.ones(hidden)}
    for layer in range(config["num_hidden_layers"]):
        shapes = {f"self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"}
        shapes |= {"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
        for name, (rows, columns) in shapes.items():
            weights[f"model.layers.{layer}.{name}.weight"] = torch.randn(rows, columns) / columns**0.5
        for name in ("input", "post_attention"):
            weights[f"model.layers.{layer}.{name}_layernorm.weight"] = torch.ones(hidden)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Served:
    """A run of three engines: one reads for another, and the third, of another name, does all by itself."""

    def __init__(self, root: Path) -> None:
        make_model(root / "model")
        self.directory = RunDirectory(root / "served")
        self.ports = [free_port() for _ in range(4)]
        given = {"model": str(root / "model"), "dtype": "float32", "enforce_eager": True, "max_model_len": 300,
                 "block_size": BLOCK, "max_num_batched_tokens": 96, "max_num_seqs": 8}  # fmt: skip

        def service(name: str, port: int, model: str, role: str) -> dict[str, Any]:
            return {"serve_id": name, "role": role, "engine_args": given | {"served_model_name": model, "port": port}}

        config = {
            "experiment": {"exp_name": "served", "exp_dir": str(self.directory.root), "task": {"type": "serve"}},
            "serve": [
                service("reader", self.ports[0], "m", "prefill"),
                service("writer", self.ports[1], "m", "decode"),
                service("plain", self.ports[2], "plain", "both"),
            ],
            "gateway": {"port": self.ports[3]},
        }
        (root / "serve.yaml").write_text(yaml.safe_dump(config))
        flagvega("--config-path", str(root), "--config-name", "serve", "action=run", "detach=true")

    def wait_for_all(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            run = self.directory.read()
            assert run is not None
            assert not run.finished, run.reason
            assert time.monotonic() < deadline
            try:
                if json.loads(self.get(3, "/health"))["ready"] == 3:
                    return
            except OSError:
                pass
            time.sleep(0.5)

    def get(self, index: int, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[index]}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    def hits(self) -> int:
        """Tokens of prompts that the writer took from the reader."""
        lines = self.get(1, "/metrics").splitlines()
        (line,) = [each for each in lines if each.startswith("vllm:external_prefix_cache_hits_total")]
        return round(float(line.rsplit(" ", 1)[1]))

    def ask(self, model: str, prompt: Sequence[int]) -> tuple[list[int], str | None]:
        """Greedy tokens, and who read the prompt."""
        question = {"model": model, "prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True}
        body = json.dumps(question | {"return_token_ids": True}).encode()
        url = f"http://127.0.0.1:{self.ports[3]}/v1/completions"
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=120) as answer:
            return json.load(answer)["choices"][0]["token_ids"], answer.headers["X-Flagvega-Prefill"]

    def ask_all(self, model: str, prompts: Sequence[Sequence[int]]) -> list[tuple[list[int], str | None]]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda prompt: self.ask(model, prompt), prompts))

    @property
    def left(self) -> list[Path]:
        """What lies between the engines."""
        return list((self.directory.root / "serve" / "handover").glob("*"))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    found = Served(tmp_path_factory.mktemp("roles"))
    try:
        found.wait_for_all()
        yield found
    finally:
        flagvega("action=stop", f"run_dir={found.directory.root}")
    ended = found.directory.read()
    assert ended is not None
    assert find_processes(ended.token) == []
    assert not (found.directory.root / "serve" / "handover").exists()


def draw(seed: int, lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(VOCABULARY) for _ in range(length)] for length in lengths]


def test_answers_are_those_of_one_engine_and_every_cache_was_taken(served: Served) -> None:
    prompts = draw(1)
    before = served.hits()
    answers = served.ask_all("m", prompts)
    assert [tokens for tokens, _ in answers] == [tokens for tokens, _ in served.ask_all("plain", prompts)]
    assert {reader for _, reader in answers} == {"0"}
    # The last token of a prompt is computed by the writer: it needs what comes of it.
    taken = served.hits() - before
    print(f"{taken} of {sum(LENGTHS)} tokens of prompts were taken over")
    assert taken == sum(LENGTHS) - len(LENGTHS)
    assert served.left == []


def test_what_the_writer_knows_by_itself_is_not_taken_again(served: Served) -> None:
    (prompt,) = draw(2, [200])
    first, _ = served.ask("m", prompt)
    before = served.hits()
    longer = [*prompt, *first, 5]
    assert served.ask("m", longer)[0] == served.ask("plain", longer)[0]
    assert served.hits() - before == len(longer) - 1 - (200 + NUM_TOKENS - 1) // BLOCK * BLOCK
    assert served.ask("m", prompt)[0] == first
    assert served.left == []


def test_answers_are_right_when_the_reader_is_killed_at_work(served: Served) -> None:
    prompts = draw(3, LENGTHS * 3)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(served.ask_all, "m", prompts)
        time.sleep(0.5)
        started = [event["pid"] for event in served.directory.events(0) if event["event"] == "start"]
        os.killpg(started[-1], signal.SIGKILL)
        answers = asked.result()
    assert [tokens for tokens, _ in answers] == [tokens for tokens, _ in served.ask_all("plain", prompts)]
    assert {reader for _, reader in answers} == {"0", None}
    served.wait_for_all()  # it was started again
    assert served.ask_all("m", draw(4)) == [(tokens, "0") for tokens, _ in served.ask_all("plain", draw(4))]
