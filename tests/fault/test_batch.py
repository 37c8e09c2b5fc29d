"""A batch of prompts: every result once, whatever is cut, and instances that die are waited for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flagvega.records import read_json_lines, write_json
from tests.conftest import ROOT
from tests.fault.test_keeper import PATIENCE_S, TOY, free_port


@pytest.fixture
def instances() -> Iterator[list[int]]:
    """Ports of two toys, a quick and a slow one."""
    ports = [free_port(), free_port()]
    toys = [start_toy(ports[0], ""), start_toy(ports[1], "slow")]
    yield ports
    for toy in toys:
        toy.kill()
        toy.wait()


def start_toy(port: int, way: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(TOY), str(port), way], stdout=subprocess.DEVNULL)


def start(directory: Path, prompts: list[str], ports: list[int], slots: int = 2) -> subprocess.Popen[bytes]:
    (directory / "job").mkdir(exist_ok=True)
    asked = [{"url": f"http://127.0.0.1:{port}", "model": "toy", "slots": slots} for port in ports]
    question = {"prompts": prompts, "sampling": {"max_tokens": 4}, "model": "toy", "instances": asked}
    write_json(directory / "job" / "batch.json", question)
    argv = [sys.executable, "-P", "-m", "flagvega.serve.batch", "--run-dir", str(directory)]
    return subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": str(ROOT)})


def rows(directory: Path) -> list[dict[str, Any]]:
    return read_json_lines(directory / "results.jsonl")


def test_every_prompt_has_one_result_and_the_faster_instance_does_more(tmp_path: Path, instances: list[int]) -> None:
    prompts = [*(f"p{i}" for i in range(20)), "refused"]
    assert start(tmp_path, prompts, instances).wait(PATIENCE_S) == 0
    found = {row["index"]: row for row in rows(tmp_path)}
    assert len(rows(tmp_path)) == len(prompts) == len(found)
    assert all(found[i]["texts"] == [f"p{i}!"] for i in range(20))
    assert "no" in found[20]["error"]


def test_a_batch_that_was_cut_goes_on_with_what_is_missing(tmp_path: Path, instances: list[int]) -> None:
    prompts = [f"p{i}" for i in range(8)]
    cut = start(tmp_path, prompts, instances[1:])
    deadline = time.monotonic() + PATIENCE_S
    while len(rows(tmp_path)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    cut.send_signal(signal.SIGKILL)
    cut.wait()
    before = len(rows(tmp_path))
    assert before < 8
    assert start(tmp_path, prompts, instances[:1]).wait(PATIENCE_S) == 0
    assert sorted(row["index"] for row in rows(tmp_path)) == list(range(8))


def test_an_instance_that_dies_is_waited_for(tmp_path: Path) -> None:
    port = free_port()
    first = start_toy(port, "slow")
    batch = start(tmp_path, [f"p{i}" for i in range(4)], [port])
    deadline = time.monotonic() + PATIENCE_S
    while not rows(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.kill()
    first.wait()
    second = start_toy(port, "")
    try:
        assert batch.wait(PATIENCE_S) == 0
    finally:
        second.kill()
        second.wait()
    assert sorted(row["index"] for row in rows(tmp_path)) == list(range(4))
    assert not any("error" in row for row in rows(tmp_path))
