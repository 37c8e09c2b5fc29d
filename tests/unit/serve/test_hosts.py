"""Another host of a run, as the shared folder tells of it."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from flagvega.records import append_json_line
from flagvega.run import beats
from flagvega.run.directory import Run, RunDirectory
from flagvega.serve import hosts
from flagvega.serve.hosts import Host, is_first_running

RUN = Run("r", "shop", "token", "two", 1, 2, (1,), 30, started=100.0, state="running")


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    for folder in ("events", "serve"):
        (tmp_path / folder).mkdir()
    found = RunDirectory(tmp_path, 1)
    found.write(RUN)
    return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that have passed for whoever listens."""
    now = [1000.0]
    for module in (hosts, beats):
        monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def beat(directory: RunDirectory, at: int) -> None:
    file = directory.root / "serve" / "beat-1"
    file.touch()
    os.utime(file, ns=(at, at))


def tell(directory: RunDirectory, at: float, event: str, reason: str = "") -> None:
    append_json_line(directory.event_file(1), {"time": at, "event": event, "reason": reason})


def passes(host: Host, clock: list[float], seconds: int) -> None:
    for _ in range(seconds):
        clock[0] += 1
        host.look()


def test_its_instances_do_what_their_keeper_wrote_down_in_this_run(directory: RunDirectory, clock: list[float]) -> None:
    tell(directory, 50.0, "serving")
    host = Host(directory.root, 1, "two", [{"id": 1}])
    (instance,) = host.instances
    host.look()
    assert instance.state == "starting"
    for at, event in ((101.0, "start"), (102.0, "serving"), (103.0, "restart"), (104.0, "start")):
        tell(directory, at, event)
    host.look()
    assert (instance.state, instance.restarts) == ("starting", 1)
    tell(directory, 105.0, "exit", "it ended by itself\nmore")
    host.look()
    assert (instance.state, instance.trouble, instance.has_ended) == ("failed", "it ended by itself", True)
    assert not host.trouble
    tell(directory, 106.0, "start")
    host.look()
    assert (instance.state, instance.has_ended) == ("starting", False)


def test_it_is_gone_when_its_run_has_ended_and_it_is_silent(directory: RunDirectory, clock: list[float]) -> None:
    host = Host(directory.root, 1, "two", [{"id": 1}])
    directory.write(replace(RUN, state="failed", reason="its keeper was killed"))
    passes(host, clock, 2)
    assert not host.trouble
    passes(host, clock, 3)
    assert host.trouble == host.instances[0].trouble == "its keeper was killed"


def test_what_a_former_run_left_says_nothing(directory: RunDirectory, clock: list[float]) -> None:
    directory.write(replace(RUN, state="stopped"))
    host = Host(directory.root, 1, "two")
    passes(host, clock, 30)
    assert not host.trouble


def test_silence_for_a_minute_is_a_loss_until_it_is_heard_again(directory: RunDirectory, clock: list[float]) -> None:
    host = Host(directory.root, 1, "two", [{"id": 1}])
    passes(host, clock, 59)
    assert not host.trouble
    passes(host, clock, 5)
    assert "not been heard of for 60 s" in host.trouble
    directory.write(replace(RUN, started=200.0))
    tell(directory, 150.0, "exit", "of the former run")
    tell(directory, 201.0, "serving")
    beat(directory, 1)
    passes(host, clock, 1)
    assert not host.trouble
    assert host.instances[0].state == "ready"


def test_whoever_was_held_up_itself_does_not_take_the_others_for_gone(
    directory: RunDirectory, clock: list[float]
) -> None:
    host = Host(directory.root, 1, "two")
    beat(directory, 1)
    passes(host, clock, 1)
    clock[0] += 300
    passes(host, clock, 59)
    assert not host.trouble


def test_a_first_host_that_is_not_heard_is_not_joined(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "HEAR_S", 0.1)
    first = RunDirectory(directory.root)
    assert not is_first_running(directory.root)
    first.write(replace(RUN, node=0, started=time.time()))
    assert not is_first_running(directory.root)
