"""Runs of the toy rank program, and what must hold at the end of each of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from flagvega.records import Owner
from flagvega.run.directory import Run, RunDirectory
from flagvega.run.prepare import prepare, start_detached
from flagvega.run.processes import find_processes, kill_processes
from tests.toy.job import toy_launch

TIMEOUT_S = 60.0

Start = Callable[..., RunDirectory]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a detached toy run; at the end no process, no lock and no torn event may be left."""
    directories: list[RunDirectory] = []

    def start_toy(*words: str, name: str = "run", **more: object) -> RunDirectory:
        directory = prepare(toy_launch(tmp_path / name, *words, **more), "toy", {}, {})  # type: ignore[arg-type]
        directories.append(directory)
        start_detached(directory, os.environ)
        return directory

    yield start_toy
    for directory in directories:
        run = read(directory)
        left = find_processes(run.token)
        kill_processes(run.token)
        assert not left
        assert directory.lock.owner() is None
        assert all(directory.events(rank) for rank in run.ranks)


def read(directory: RunDirectory) -> Run:
    """The state of a run that was started."""
    run = directory.read()
    assert run is not None
    return run


def wait_until(condition: Callable[[], object], timeout_s: float = TIMEOUT_S) -> None:
    """Wait, and fail when it takes too long."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.05)


def wait_for_step(directory: RunDirectory, step: int) -> None:
    """Wait until a step is in the metrics."""
    lines = directory.metrics()
    wait_until(lambda: any(entry["step"] >= step for entry in lines.read()))


def wait_for_end(directory: RunDirectory) -> Run:
    """Wait until the supervisor has ended."""
    wait_until(lambda: read(directory).finished and directory.lock.owner() is None)
    return read(directory)


def rank_process(directory: RunDirectory, rank: int) -> psutil.Process:
    """The process of a rank."""
    event = next(event for event in reversed(directory.events(rank)) if event["event"] == "start")
    return psutil.Process(event["pid"])


def supervisor(directory: RunDirectory) -> psutil.Process:
    """The process of the supervisor."""
    owner = read(directory).supervisor
    assert isinstance(owner, Owner)
    return psutil.Process(owner.pid)
