"""Emulated chips serve: two real vLLMs of unlike speed behind one endpoint, started and stopped by the product."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from flagvega.records import read_json
from hardware.emulated.vllm_plugin.flagvega_emulated.pace import read_step_curve
from tests.rank.served import Served, needs_vllm
from tools.bench.serve_engines import free_port
from tools.bench.tiny_model import ENGINE_ARGS, make_tiny_model

CHIPS = ("emu-l", "emu-s")
SLOTS, LENGTH = 4, 24

pytestmark = needs_vllm


@dataclass
class Answer:
    """What came of a request."""

    times: list[float]
    """Of its events: an engine that is behind puts several tokens into one."""
    num_tokens: int
    """As the engine counts, at the end; 0 without one."""
    error: str
    instance: str

    @property
    def is_whole(self) -> bool:
        """Whether all of it came."""
        return self.num_tokens == LENGTH and not self.error

    @property
    def token_s(self) -> float:
        """Time between its tokens."""
        assert self.is_whole
        return (self.times[-1] - self.times[0]) / (LENGTH - 1)


class Chips(Served):
    """A run that serves the tiny model on one chip of each kind."""

    def __init__(self, root: Path) -> None:
        model = make_tiny_model(root / "model")
        given = {**ENGINE_ARGS, "model": str(model), "served_model_name": "tiny", "max_num_seqs": SLOTS}
        services = [{"serve_id": chip, "chip": chip, "engine_args": {**given, "port": free_port()}} for chip in CHIPS]
        cluster = {"nodes": [{"chip": chip} for chip in CHIPS]}
        super().__init__(root, services, cluster=cluster, gateway={"probing": {"stall_s": 3.0, "slow_start_s": 0.0}})

    def open(self, port: int, length: int) -> Any:
        """A streamed answer that begins."""
        options = {"stream": True, "stream_options": {"include_usage": True}}
        body = {"model": "tiny", "prompt": "w7 w8", "max_tokens": length, **options}
        question = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return urllib.request.urlopen(question)

    def stream(self, port: int) -> Answer:
        """A streamed answer."""
        times, num_tokens, error = [], 0, ""
        with self.open(port, LENGTH) as answer:
            for line in answer:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line.removeprefix(b"data: "))
                if "error" in event:
                    error = event["error"]["code"]
                elif event["choices"]:
                    times.append(time.monotonic())
                else:
                    num_tokens = event["usage"]["completion_tokens"]
            return Answer(times, num_tokens, error, answer.headers.get("X-Flagvega-Instance", ""))

    def ask_many(self, number: int, meanwhile: Callable[[], None]) -> list[Answer]:
        """So many answers at once through the gateway."""
        with ThreadPoolExecutor(number) as threads:
            answers = [threads.submit(self.stream, self.gateway) for _ in range(number)]
            time.sleep(0.6)
            meanwhile()
            return [each.result() for each in answers]

    def count(self, instance: int) -> dict[str, Any]:
        """What the instance wrote of its chip's time."""
        (file,) = (self.directory.root / "logs").glob(f"*/emulated-{instance}.json")
        found: dict[str, Any] = read_json(file)
        return found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chips]:
    found = Chips(tmp_path_factory.mktemp("emulated"))
    try:
        found.wait_for_all()
        yield found
    finally:
        found.stop()


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("number", [1, SLOTS])
def test_tokens_come_at_the_pace_of_the_chip(served: Chips, chip: str, number: int) -> None:
    instance = CHIPS.index(chip)
    expected = read_step_curve(chip).duration_s(number, 0)
    for _ in range(5):
        before = served.count(instance)
        with ThreadPoolExecutor(number) as threads:
            found = mean(each.token_s for each in threads.map(served.stream, [served.ports[instance]] * number))
        time.sleep(0.1)
        if served.count(instance)["late_s"] == before["late_s"] and found == pytest.approx(expected, rel=0.08):
            return  # else the host was busy with something else
    pytest.fail(f"{found:.4f} s a token, and the chip takes {expected:.4f} s")


def test_one_endpoint_stands_in_front_of_both(served: Chips) -> None:
    answers = served.ask_many(2 * SLOTS, lambda: None)
    assert all(each.is_whole for each in answers)
    assert {each.instance for each in answers} == {"0", "1"}


def test_a_client_that_leaves_takes_its_request_out_of_the_engine(served: Chips) -> None:
    with served.open(served.gateway, 3000) as answer:
        for _ in range(9):
            answer.readline()
        assert served.num_running() == 1
    served.wait(lambda: served.num_running() == 0)


def test_what_waits_at_an_engine_that_hangs_is_answered_by_the_other(served: Chips) -> None:
    engine = served.engine(0)
    engine.suspend()  # its server goes on to answer /health
    try:
        answers = served.ask_many(SLOTS, lambda: None)
        assert all(each.is_whole and each.instance == "1" for each in answers)
        assert served.num_ready() == 1
    finally:
        engine.resume()
    served.wait_for_all()


def test_a_killed_engine_costs_only_what_it_was_writing_and_is_started_again(served: Chips) -> None:
    answers = served.ask_many(4 * SLOTS, served.process(1).kill)
    whole = [each for each in answers if each.is_whole]
    broken = [each for each in answers if each not in whole]
    assert all(each.error == "instance_lost" and each.times and each.instance == "1" for each in broken)
    assert len(whole) >= 3 * SLOTS
    served.wait_for_all()
    assert served.events(1, "restart")
