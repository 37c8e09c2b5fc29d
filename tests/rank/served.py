"""A run that serves with the real vLLM, started in the background as a user does it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import save_file

from backends.megatron.companions import write_tokenizer
from flagvega.run.directory import RunDirectory
from flagvega.run.processes import find_processes
from tests.conftest import ROOT
from tools.bench.serve_engines import free_port
from tools.bench.tiny_model import make_tiny_model

SERVING_PYTHON = ROOT / ".venv-serve" / "bin" / "python"
START_S = 400.0

needs_vllm = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not SERVING_PYTHON.exists(), reason="vLLM is in .venv-serve, which is not made"),
]


def flagvega(*words: str) -> str:
    """What the command line prints."""
    done = subprocess.run([sys.executable, "run.py", *words], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout


class Served:
    """Services: several, or one with a ``gateway`` block, have a gateway in front of them."""

    def __init__(self, root: Path, services: Sequence[Mapping[str, Any]], **blocks: Any) -> None:
        self.directory = RunDirectory(root / "served")
        self.ports = [service["engine_args"]["port"] for service in services]
        self.gateway = free_port() if len(services) > 1 or "gateway" in blocks else 0
        if self.gateway:
            blocks = {**blocks, "gateway": {**blocks.get("gateway", {}), "port": self.gateway}}
        config = {
            "experiment": {"exp_name": "served", "exp_dir": str(self.directory.root), "task": {"type": "serve"}},
            "serve": list(services),
            **blocks,
        }
        (root / "serve.yaml").write_text(yaml.safe_dump(config))
        flagvega("--config-path", str(root), "--config-name", "serve", "action=run", "detach=true")

    @property
    def url(self) -> str:
        """Where it is asked."""
        return f"http://127.0.0.1:{self.gateway or self.ports[0]}"

    def wait(self, seen: Callable[[], object], timeout_s: float = START_S) -> None:
        """Until something is so; fails when the run ends first."""
        deadline = time.monotonic() + timeout_s
        while not seen():
            run = self.directory.read()
            assert run is not None
            assert not run.finished, run.reason
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def wait_for_all(self) -> None:
        """Until every instance serves, as the gateway sees it where there is one."""
        if self.gateway:
            self.wait(lambda: self.num_ready() == len(self.ports))
        else:
            self.wait(lambda: self.events(0, "serving"))

    def ask(self, model: str, **question: Any) -> dict[str, Any]:
        """A whole, greedy completion."""
        body = json.dumps({"model": model, "temperature": 0, **question}).encode()
        request = urllib.request.Request(f"{self.url}/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as answer:
            return {"headers": answer.headers, **json.load(answer)}

    def num_ready(self) -> int:
        """Instances that serve, as the gateway sees it."""
        return len(self.ids("ready"))

    def ids(self, state: str) -> list[int]:
        """Instances in a state, as the gateway sees it; none while it does not answer."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=10) as answer:
                found = json.load(answer)
        except urllib.error.HTTPError as error:
            found = json.load(error)
        except OSError:
            return []
        return [each["id"] for each in found["instances"] if each["state"] == state]

    def events(self, instance: int, name: str) -> list[dict[str, Any]]:
        """What was told of an instance."""
        return [event for event in self.directory.events(instance) if event["event"] == name]

    def process(self, instance: int) -> psutil.Process:
        """The server of an instance."""
        return psutil.Process(self.events(instance, "start")[-1]["pid"])

    def engine(self, instance: int) -> psutil.Process:
        """What computes behind the server of an instance."""
        children = self.process(instance).children(recursive=True)
        (found,) = [each for each in children if "EngineCore" in each.name()]
        return found

    def metric(self, port: int, name: str, **labels: str) -> float:
        """The sum of a series."""
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            page = answer.read().decode()
        found = re.findall(rf"^{name}(?:{{(.*)}})? (.*)$", page, re.MULTILINE)
        return sum(
            float(value) for given, value in found if all(f'{key}="{word}"' in given for key, word in labels.items())
        )

    def num_running(self) -> int:
        """Requests that the engines work on, as they say."""
        return round(sum(self.metric(port, "vllm:num_requests_running") for port in self.ports))

    def stop(self) -> None:
        """End the run; nothing of it may be left."""
        flagvega("action=stop", f"run_dir={self.directory.root}")
        ended = self.directory.read()
        assert ended is not None
        assert (ended.state, ended.exit_code) == ("stopped", 143)
        assert find_processes(ended.token) == []


def make_model(folder: Path, text: bool = False) -> Path:
    """A small Llama with random weights, whose logits lie well apart; its tokens are words, or with ``text`` bytes."""
    make_tiny_model(folder)
    config = json.loads((folder / "config.json").read_text())
    if text:
        config |= {"vocab_size": 257, "eos_token_id": 256}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "tokenizer_config.json").unlink()
        limit = config["max_position_embeddings"]
        assert not write_tokenizer({"tokenizer_type": "ByteLevel", "max_position_embeddings": limit}, folder)
    hidden, inner, rows = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    torch.manual_seed(11)
    weights = {"model.embed_tokens.weight": torch.randn(rows, hidden), "model.norm.weight": torch.ones(hidden)}
    for layer in range(config["num_hidden_layers"]):
        shapes = {f"self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"}
        shapes |= {"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
        for name, (height, width) in shapes.items():
            weights[f"model.layers.{layer}.{name}.weight"] = torch.randn(height, width) / width**0.5
        for name in ("input", "post_attention"):
            weights[f"model.layers.{layer}.{name}_layernorm.weight"] = torch.ones(hidden)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder
