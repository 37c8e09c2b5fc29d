"""The keeper of serving instances, with engines that fail in the ways in which engines do."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from flagvega.records import append_json_line, read_json_lines, write_json
from tests.conftest import ROOT

TOY = ROOT / "tests" / "toy" / "server.py"
PATIENCE_S = 60.0


class Kept:
    """A keeper at work."""

    def __init__(self, directory: Path, ways: list[str], gateway: str = "", **more: Any) -> None:
        self.directory, self.ports = directory, [free_port() for _ in ways]
        for folder in ("job", "events", "logs"):
            (directory / folder).mkdir()
        instances = [
            {"id": i, "argv": [sys.executable, str(TOY), str(port), way], "env": {}, "model": "toy", "start_s": 30,
             "hang_s": 3, "url": f"http://127.0.0.1:{port}"}
            for i, (port, way) in enumerate(zip(self.ports, ways, strict=True))
        ]  # fmt: skip
        port = str(free_port())
        entry = {"argv": [sys.executable, str(TOY), port, gateway], "env": {}, "model": "toy", "start_s": 30,
                 "url": f"http://127.0.0.1:{port}"}  # fmt: skip
        written = {"instances": instances, "scratch": ["scratch"]} | ({"gateway": entry} if gateway else {}) | more
        (directory / "scratch").mkdir()
        (directory / "scratch" / "of an earlier run").touch()
        write_json(directory / "job" / "serve.json", written)
        ranks = " ".join(str(i) for i in range(len(ways)))
        env = {**os.environ, "FLAGVEGA_RANKS": ranks, "FLAGVEGA_LOGS": str(directory / "logs"), "PYTHONPATH": str(ROOT)}
        argv = [sys.executable, "-P", "-m", "flagvega.serve.keeper", "--run-dir", str(directory)]
        self.process = subprocess.Popen(argv, env=env)

    def events(self, rank: int = 0, name: str = "") -> list[dict[str, Any]]:
        found = read_json_lines(self.directory / "events" / f"rank-{rank}.jsonl")
        return [event for event in found if not name or event["event"] == name]

    def wait(self, seen: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not seen():
            assert time.monotonic() < deadline, self.events()
            time.sleep(0.05)

    def ask(self, rank: int = 0, max_tokens: int = 1) -> dict[str, Any]:
        body = json.dumps({"model": "toy", "prompt": "a", "max_tokens": max_tokens}).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[rank]}/v1/completions", body) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return found

    def stop(self, code: int = 143) -> int:
        write_json(self.directory / "stop", {"code": code, "reason": "a test"})
        return self.process.wait(PATIENCE_S)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Callable[..., Kept]]:
    started: list[Kept] = []

    def begin(*ways: str, gateway: str = "", **more: Any) -> Kept:
        started.append(Kept(tmp_path, list(ways), gateway, **more))
        return started[-1]

    yield begin
    for each in started:
        pids = [event["pid"] for file in each.directory.glob("events/*") for event in read_json_lines(file)
                if event["event"] == "start"]  # fmt: skip
        each.process.kill()
        each.process.wait()
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_instances_serve_and_leave_with_the_code_that_was_asked_for(keep: Callable[..., Kept]) -> None:
    kept = keep("", "")
    kept.wait(lambda: kept.events(0, "serving") and kept.events(1, "serving"))
    assert kept.ask(0)["pid"] != kept.ask(1)["pid"]
    assert kept.stop(130) == 0
    assert [kept.events(rank, "exit")[0]["code"] for rank in (0, 1)] == [130, 130]
    assert not any(is_running(kept.events(rank, "start")[0]["pid"]) for rank in (0, 1))


def test_an_engine_that_ends_by_itself_with_code_0_has_failed(keep: Callable[..., Kept]) -> None:
    kept = keep("gone", "")
    assert kept.process.wait(PATIENCE_S) == 1
    assert [kept.events(rank, "exit")[0]["code"] for rank in (0, 1)] == [1, 143]
    assert "ended by itself, with code 0" in kept.events(0, "exit")[0]["reason"]
    assert not is_running(kept.events(1, "start")[0]["pid"])


def test_an_engine_is_not_ready_by_its_health_alone(keep: Callable[..., Kept]) -> None:
    kept = keep("sick")
    assert kept.process.wait(PATIENCE_S) == 1
    assert not kept.events(0, "serving")
    assert "ended by itself" in kept.events(0, "exit")[0]["reason"]


def test_an_engine_that_dies_while_it_serves_is_started_again_a_few_times(keep: Callable[..., Kept]) -> None:
    kept = keep("")
    for count in range(1, 5):
        kept.wait(lambda count=count: len(kept.events(0, "serving")) == count)
        os.kill(kept.events(0, "start")[-1]["pid"], signal.SIGKILL)
    assert kept.process.wait(PATIENCE_S) == 1
    assert len(kept.events(0, "restart")) == 3
    assert "code -9" in kept.events(0, "exit")[0]["reason"]


def test_an_engine_that_hangs_is_ended_and_started_again(keep: Callable[..., Kept]) -> None:
    kept = keep("")
    kept.wait(lambda: kept.events(0, "serving"))
    first = kept.events(0, "start")[0]["pid"]
    os.kill(first, signal.SIGSTOP)
    kept.wait(lambda: len(kept.events(0, "serving")) == 2)
    assert "it hangs" in kept.events(0, "restart")[0]["reason"]
    assert kept.ask()["pid"] != first
    assert kept.stop() == 0


def test_an_engine_that_gives_the_gateway_no_tokens_is_started_again_though_its_server_answers(
    keep: Callable[..., Kept],
) -> None:
    kept = keep("", "")
    kept.wait(lambda: kept.events(0, "serving") and kept.events(1, "serving"))
    (kept.directory / "serve").mkdir(exist_ok=True)
    states = [{"id": 0, "state": "ejected"}, {"id": 1, "state": "ready"}]
    write_json(kept.directory / "serve" / "gateway.json", {"time": time.time(), "instances": states})
    kept.wait(lambda: kept.events(0, "restart"))
    assert "gave the gateway no token" in kept.events(0, "restart")[0]["reason"]
    assert not kept.events(1, "restart")
    assert kept.stop() == 0


def test_what_a_dead_engine_had_started_is_ended_with_it(keep: Callable[..., Kept]) -> None:
    kept = keep("family")
    kept.wait(lambda: kept.events(0, "serving"))
    first = kept.ask()
    os.kill(first["pid"], signal.SIGKILL)
    kept.wait(lambda: len(kept.events(0, "serving")) == 2)
    second = kept.ask()
    assert not is_alive(first["child"])
    assert kept.stop() == 0
    assert not is_alive(second["child"])


def is_alive(pid: int) -> bool:
    """Whether a process runs: one that its parent left behind may stay as a zombie for a moment."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_what_was_begun_is_finished_when_it_is_stopped(keep: Callable[..., Kept]) -> None:
    kept = keep("slow")
    kept.wait(lambda: kept.events(0, "serving"))
    scratch = kept.directory / "scratch"
    assert not scratch.exists()
    scratch.mkdir()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(kept.ask, 0, 8)
        time.sleep(0.5)
        assert kept.stop() == 0
        assert answer.result()["choices"]
    assert not scratch.exists()


def test_an_engine_that_still_loads_is_not_waited_for_when_it_is_stopped(keep: Callable[..., Kept]) -> None:
    kept = keep("loads", "slow")
    log = kept.directory / "logs" / "rank-0.log"
    kept.wait(lambda: kept.events(1, "serving") and "loading" in log.read_text())
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(kept.ask, 1, 8)
        time.sleep(0.5)
        begun = time.monotonic()
        assert kept.stop() == 0
        assert time.monotonic() - begun < 20
        assert answer.result()["choices"]
    assert not is_running(kept.events(0, "start")[0]["pid"])


def test_the_gateway_is_told_of_and_leaves_before_the_instances(keep: Callable[..., Kept]) -> None:
    kept = keep("", gateway="plain")
    kept.wait(lambda: kept.events(0, "endpoint"))
    assert kept.events(0, "endpoint")[0]["reason"].startswith("http://127.0.0.1:")
    assert kept.stop() == 0
    assert kept.events(0, "exit")[0]["code"] == 143


def test_without_its_gateway_a_run_has_failed(keep: Callable[..., Kept]) -> None:
    kept = keep("", gateway="gone")
    assert kept.process.wait(PATIENCE_S) == 1
    (end,) = kept.events(0, "exit")
    assert end["code"] == 1
    assert "the gateway: it ended by itself, with code 0" in end["reason"]


def test_a_batch_that_fails_ends_a_run_of_several_hosts_too(keep: Callable[..., Kept]) -> None:
    kept = keep("", batch=["false"], hosts=["one", "two"])
    assert kept.process.wait(PATIENCE_S) == 1
    (end,) = kept.events(0, "exit")
    assert end["code"] == 1
    assert "the batch ended with code 1" in end["reason"]


def test_a_batch_does_not_wait_for_an_instance_of_another_host_that_is_lost(keep: Callable[..., Kept]) -> None:
    other = {"position": 1, "id": 1, "url": "http://127.0.0.1:1"}
    kept = keep("", batch=["sleep", "600"], hosts=["one", "two"], others=[other])
    kept.wait(lambda: kept.events(0, "serving"))
    file = kept.directory / "events" / "rank-1.jsonl"
    append_json_line(file, {"time": time.time(), "event": "exit", "code": 1, "reason": "it was killed"})
    assert kept.process.wait(PATIENCE_S) == 1
    (end,) = kept.events(0, "exit")
    assert end["code"] == 1
    assert end["reason"] == "the batch waits for an instance that is lost: it was killed"
