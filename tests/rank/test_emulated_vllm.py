"""Emulated chips serve: two real vLLMs of unlike speed behind one endpoint, started and stopped by the product."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import psutil
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


@dataclass
class Answer:
    """What came of a request."""

    times: list[float]
    error: str
    instance: str

    @property
    def token_s(self) -> float:
        """Time between its tokens."""
        assert len(self.times) == LENGTH
        return (self.times[-1] - self.times[0]) / (LENGTH - 1)


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
            "gateway": {"port": self.gateway, "probing": {"stall_s": 3.0, "slow_start_s": 0.0}},
        }
        (root / "serve.yaml").write_text(yaml.safe_dump(config))
        flagvega("--config-path", str(root), "--config-name", "serve", "action=run", "detach=true")

    def wait(self, seen: Callable[[], object]) -> None:
        deadline = time.monotonic() + START_S
        while not seen():
            run = self.directory.read()
            assert run is not None
            assert not run.finished, run.reason
            assert time.monotonic() < deadline
            time.sleep(0.5)

    def num_ready(self) -> int:
        """Instances that serve, as the gateway sees it."""
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.gateway}/health") as answer:
            return int(json.loads(answer.read())["ready"])
        return 0

    def process(self, instance: int) -> psutil.Process:
        """The server of an instance."""
        return psutil.Process(
            [event["pid"] for event in self.directory.events(instance) if event["event"] == "start"][-1]
        )

    def num_running(self) -> int:
        """Requests that the engines work on, as they say."""
        pages = [urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read() for port in self.ports.values()]
        found = [re.findall(rb"^vllm:num_requests_running{.*} (.*)$", page, re.MULTILINE) for page in pages]
        return round(sum(float(number) for (number,) in found))

    def open(self, port: int, length: int) -> Any:
        """A streamed answer that begins."""
        body = {"model": "tiny", "prompt": "w7 w8", "max_tokens": length, "stream": True}
        question = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return urllib.request.urlopen(question)

    def ask(self, port: int) -> Answer:
        """A streamed answer."""
        times, error = [], ""
        with self.open(port, LENGTH) as answer:
            for line in answer:
                if line.startswith(b'data: {"id"'):
                    times.append(time.monotonic())
                elif line.startswith(b'data: {"error"'):
                    error = json.loads(line.removeprefix(b"data: "))["error"]["code"]
            return Answer(times, error, answer.headers.get("X-Flagvega-Instance", ""))

    def ask_many(self, number: int, meanwhile: Callable[[], None]) -> list[Answer]:
        """So many answers at once through the gateway."""
        with ThreadPoolExecutor(number) as threads:
            answers = [threads.submit(self.ask, self.gateway) for _ in range(number)]
            time.sleep(0.6)
            meanwhile()
            return [each.result() for each in answers]

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
        found.wait(lambda: found.num_ready() == 2)
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
            found = mean(each.token_s for each in threads.map(served.ask, [served.ports[chip]] * number))
        time.sleep(0.1)
        if served.count(instance)["late_s"] == before["late_s"] and found == pytest.approx(expected, rel=0.08):
            return  # else the host was busy with something else
    pytest.fail(f"{found:.4f} s a token, and the chip takes {expected:.4f} s")


def test_one_endpoint_stands_in_front_of_both(served: Served) -> None:
    answers = served.ask_many(2 * SLOTS, lambda: None)
    assert all(each.token_s for each in answers)
    assert {each.instance for each in answers} == {"0", "1"}


def test_a_client_that_leaves_takes_its_request_out_of_the_engine(served: Served) -> None:
    with served.open(served.gateway, 3000) as answer:
        for _ in range(9):
            answer.readline()
        assert served.num_running() == 1
    served.wait(lambda: served.num_running() == 0)


def test_what_waits_at_an_engine_that_hangs_is_answered_by_the_other(served: Served) -> None:
    (engine,) = served.process(0).children(recursive=True)[-1:]
    assert "EngineCore" in engine.name()
    engine.suspend()  # its server goes on to answer /health
    try:
        answers = served.ask_many(SLOTS, lambda: None)
        assert all(each.token_s and each.instance == "1" for each in answers)
        assert served.num_ready() == 1
    finally:
        engine.resume()
    served.wait(lambda: served.num_ready() == 2)


def test_a_killed_engine_costs_only_what_it_was_writing_and_is_started_again(served: Served) -> None:
    answers = served.ask_many(4 * SLOTS, served.process(1).kill)
    whole = [each for each in answers if len(each.times) == LENGTH]
    broken = [each for each in answers if each not in whole]
    assert all(each.error == "instance_lost" and each.times and each.instance == "1" for each in broken)
    assert len(whole) >= 3 * SLOTS
    served.wait(lambda: served.num_ready() == 2)
    assert [event for event in served.directory.events(1) if event["event"] == "restart"]
