"""Emulated chips serve: two real vLLMs of unlike speed behind one endpoint, started and stopped by the product."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import yaml

from flagvega.records import read_json
from flagvega.run.directory import RunDirectory
from hardware.emulated.vllm_plugin.flagvega_emulated.pace import read_step_curve
from tests.conftest import ROOT
from tools.bench.serve_engines import free_port
from tools.bench.tiny_model import ENGINE_ARGS, make_tiny_model

SERVING_PYTHON = ROOT / ".venv-serve" / "bin" / "python"
CHIPS = ("emu-l", "emu-s")
SLOTS, LENGTH = 4, 24
START_S = 240.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not SERVING_PYTHON.exists(), reason="vLLM is in .venv-serve, which is not made"),
]


class Served:
    """A run that serves the tiny model on one chip of each kind."""

    def __init__(self, root: Path) -> None:
        self.directory = RunDirectory(root / "served")
        self.ports = {chip: free_port() for chip in CHIPS}
        self.gateway = free_port()
        model = make_tiny_model(root / "model")
        given = {**ENGINE_ARGS, "model": str(model), "served_model_name": "tiny", "max_num_seqs": SLOTS}
        config = {
            "experiment": {"exp_name": "served", "exp_dir": str(self.directory.root), "task": {"type": "serve"}},
            "cluster": {"nodes": [{"chip": chip} for chip in CHIPS]},
            "serve": [
                {"serve_id": chip, "chip": chip, "engine_args": {**given, "port": port}}
                for chip, port in self.ports.items()
            ],
            "gateway": {"port": self.gateway},
        }
        (root / "serve.yaml").write_text(yaml.safe_dump(config))
        flagvega("--config-path", str(root), "--config-name", "serve", "action=run", "detach=true")

    def wait(self) -> None:
        deadline = time.monotonic() + START_S
        while sum(any(event["event"] == "serving" for event in self.directory.events(i)) for i in (0, 1)) < 2:
            run = self.directory.read()
            assert run is not None
            assert not run.finished, run.reason
            assert time.monotonic() < deadline
            time.sleep(0.5)

    def token_s(self, port: int) -> float:
        """Time between the tokens of an answer."""
        body = {"model": "tiny", "prompt": "w7 w8", "max_tokens": LENGTH, "stream": True}
        question = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(question) as answer:
            times = [time.monotonic() for line in answer if line.startswith(b'data: {"id"')]
        assert len(times) == LENGTH
        return (times[-1] - times[0]) / (LENGTH - 1)

    def count(self, instance: int) -> dict[str, Any]:
        """What the instance wrote of its chip's time."""
        (file,) = (self.directory.root / "logs").glob(f"*/emulated-{instance}.json")
        found: dict[str, Any] = read_json(file)
        return found


def flagvega(*words: str) -> None:
    subprocess.run([sys.executable, "run.py", *words], cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    found = Served(tmp_path_factory.mktemp("emulated"))
    try:
        found.wait()
        yield found
    finally:
        flagvega("action=stop", f"run_dir={found.directory.root}")


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("number", [1, SLOTS])
def test_tokens_come_at_the_pace_of_the_chip(served: Served, chip: str, number: int) -> None:
    instance = CHIPS.index(chip)
    expected = read_step_curve(chip).duration_s(number, 0)
    for _ in range(5):
        before = served.count(instance)
        with ThreadPoolExecutor(number) as threads:
            found = mean(threads.map(served.token_s, [served.ports[chip]] * number))
        time.sleep(0.1)
        if served.count(instance)["late_s"] == before["late_s"] and found == pytest.approx(expected, rel=0.08):
            return  # else the host was busy with something else
    pytest.fail(f"{found:.4f} s a token, and the chip takes {expected:.4f} s")


def test_one_endpoint_stands_in_front_of_both(served: Served) -> None:
    with ThreadPoolExecutor(2 * SLOTS) as threads:
        list(threads.map(served.token_s, [served.gateway] * 2 * SLOTS))
    served_by = [served.count(i)["steps"] for i in (0, 1)]
    assert all(served_by)
