"""Serving runs from the command line to their end, with a toy of an engine: nothing is lost and nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flagvega.records import read_json_lines
from flagvega.run.directory import RunDirectory
from flagvega.run.processes import find_processes
from tests.conftest import ROOT
from tests.fault.test_keeper import PATIENCE_S, free_port
from tests.toy.cli import environment


class Service:
    """A serving experiment of the toy, in a folder of its own."""

    def __init__(self, folder: Path, way: str = "", replicas: int = 1, **blocks: Any) -> None:
        self.folder, self.directory, self.port = folder, RunDirectory(folder / "out"), free_port()
        entry = {"serve_id": "m", "engine": "toy", "engine_args": {"way": way, "port": self.port},
                 "resources": {"num_replicas": replicas}}  # fmt: skip
        experiment = {"exp_name": "toy", "exp_dir": str(folder / "out"), "task": {"type": "serve"}}
        self.write({"experiment": experiment, "serve": [entry], **blocks})

    def write(self, config: Any) -> None:
        (self.folder / "toy.yaml").write_text(yaml.safe_dump(config))

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, str(ROOT / "run.py"), "--config-path", str(self.folder), "--config-name", "toy", *words]
        return subprocess.run(argv, env=environment(), capture_output=True, text=True, check=False, timeout=120)

    def events(self, name: str, rank: int = 0) -> list[dict[str, Any]]:
        return [event for event in self.directory.events(rank) if event["event"] == name]

    def wait(self, seen: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not seen():
            assert time.monotonic() < deadline, self.directory.read()
            time.sleep(0.05)

    @property
    def has_ended(self) -> bool:
        run = self.directory.read()
        return run is not None and run.finished and not run.alive


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Services, each started in the background; at the end nothing of them may be left."""
    started: list[Service] = []

    def begin(*given: Any, **more: Any) -> Service:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(Service(folder, *given, **more))
        done = started[-1].call("action=run", "detach=true")
        assert done.returncode == 0, done.stderr
        return started[-1]

    yield begin
    for service in started:
        service.call("action=stop", "force=true")
        run = service.directory.read()
        assert run is not None
        assert find_processes(run.token) == []
        assert service.directory.lock.owner() is None


def ask(port: int, prompt: str, model: str = "m") -> str:
    body = json.dumps({"model": model, "prompt": prompt, "max_tokens": 1}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", body, headers)
    with urllib.request.urlopen(request) as answer:
        text: str = json.loads(answer.read())["choices"][0]["text"]
        return text


def test_a_service_is_started_asked_looked_at_and_stopped(start: Callable[..., Service]) -> None:
    service = start()
    service.wait(lambda: service.events("serving"))
    assert ask(service.port, "hello") == "hello!"
    status = json.loads(service.call("action=status", "output=json").stdout)["runs"][0]
    assert status["state"] == "running"
    assert f"http://127.0.0.1:{service.port}/v1" in status["notes"][0]
    assert service.call("action=run").returncode == 4  # the port and the folder are in use
    done = service.call("action=stop")
    assert (done.returncode, done.stdout.strip()) == (0, "stopped")
    run = service.directory.read()
    assert run is not None
    assert (run.state, run.exit_code) == ("stopped", 143)
    assert service.call("action=stop").stdout.strip() == "already stopped"


def test_a_gateway_stands_in_front_of_replicas(start: Callable[..., Service]) -> None:
    pytest.importorskip("aiohttp")
    port = free_port()
    service = start("paced", replicas=2, gateway={"port": port})
    service.wait(lambda: service.events("endpoint") and service.events("serving", 1))
    assert {ask(port, f"p{i}", "toy") for i in range(8)} == {"0 "}
    assert service.call("action=stop").stdout.strip() == "stopped"


def test_why_an_engine_failed_is_said(start: Callable[..., Service]) -> None:
    service = start("gone")
    service.wait(lambda: service.has_ended)
    run = service.directory.read()
    assert run is not None
    assert (run.state, run.exit_code) == ("failed", 1)
    assert "ended by itself, with code 0" in run.reason
    assert "rank-0.log" in run.reason


def test_without_its_keeper_nothing_goes_on(start: Callable[..., Service]) -> None:
    service = start()
    service.wait(lambda: service.events("serving"))
    run = service.directory.read()
    assert run is not None
    assert run.agent_pid is not None
    os.kill(run.agent_pid, signal.SIGKILL)
    service.wait(lambda: service.has_ended)
    ended = service.directory.read()
    assert ended is not None
    assert ended.state == "failed"
    assert find_processes(ended.token) == []


def test_a_batch_ends_by_itself_and_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    service = Service(tmp_path)
    experiment = {"exp_name": "toy", "exp_dir": str(tmp_path / "out"), "task": {"type": "inference", "backend": "toy"}}
    generate = {"prompts": [f"p{i}" for i in range(6)], "sampling": {"max_tokens": 4}}
    service.write({"experiment": experiment, "inference": {"llm": {"way": "slow", "model": "x"}, "generate": generate}})
    results = tmp_path / "out" / "results.jsonl"
    for _ in range(2):
        done = service.call("action=run")
        assert done.returncode == 0, done.stderr
        assert sorted(row["index"] for row in read_json_lines(results)) == list(range(6))
        lines = results.read_text().splitlines(keepends=True)
        results.write_text("".join(lines[:4]))
    status = json.loads(service.call("action=status", "output=json").stdout)["runs"][0]
    assert (status["state"], status["shown"]["prompts"]) == ("done", "4/6")
