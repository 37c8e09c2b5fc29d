"""Stopping a run from another shell."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from flagvega.errors import PreflightError
from flagvega.run.processes import find_processes
from flagvega.run.stop import check_ours, stop_run
from tests.fault.conftest import Start, read, supervisor, wait_for_end, wait_for_step


def quiet(text: str) -> None:
    """Say nothing."""


@contextmanager
def as_nobody() -> Iterator[None]:
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def test_stop_saves_and_leaves_nothing_and_a_second_stop_says_so(start: Start) -> None:
    directory = start("--steps", "100000")
    wait_for_step(directory, 2)
    assert stop_run(directory, force=False, say=quiet) == "stopped"
    run = read(directory)
    assert (run.state, run.exit_code) == ("stopped", 143)
    assert directory.events(1)[-1]["code"] == 143
    assert stop_run(directory, force=False, say=quiet) == "already stopped"


def test_forced_stop_does_not_wait_for_ranks_that_do_not_listen(start: Start) -> None:
    directory = start("--steps", "100000", "--deaf", grace_s=1000)
    wait_for_step(directory, 2)
    begin = time.monotonic()
    stop_run(directory, force=True, say=quiet)
    assert time.monotonic() - begin < 15
    assert read(directory).state == "stopped"


def test_stop_leaves_no_process_when_supervisor_and_torchrun_were_killed(start: Start) -> None:
    directory = start("--steps", "100000")
    wait_for_step(directory, 2)
    supervisor(directory).kill()
    psutil.Process(read(directory).agent_pid).kill()
    assert find_processes(read(directory).token)
    assert stop_run(directory, force=False, say=quiet) == "stopped"
    assert directory.events(0)[-1]["code"] == 143
    assert read(directory).state == "stopped"


def test_a_run_that_never_was_is_already_stopped(start: Start) -> None:
    directory = start("--steps", "1")
    wait_for_end(directory)
    assert stop_run(directory, force=False, say=quiet) == "already stopped"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_run_of_another_user_is_not_called_stopped(start: Start) -> None:
    directory = start("--steps", "100000")
    wait_for_step(directory, 2)
    run = read(directory)
    with as_nobody(), pytest.raises(PreflightError, match="another user's"):
        check_ours(directory, run)
    stop_run(directory, force=True, say=quiet)


def test_a_directory_in_use_is_refused_and_the_run_in_it_goes_on(start: Start) -> None:
    directory = start("--steps", "100000")
    wait_for_step(directory, 2)
    with pytest.raises(PreflightError, match=r"in use by process \d+ on .* since"):
        start()
    wait_for_step(directory, 10)
    stop_run(directory, force=True, say=quiet)


def test_what_a_dead_supervisor_left_is_ended_before_the_next_run_starts(start: Start) -> None:
    directory = start("--steps", "100000", "--deaf")
    wait_for_step(directory, 2)
    token = read(directory).token
    watcher = supervisor(directory)
    watcher.kill()
    watcher.wait()
    directory = start("--steps", "3")
    assert not find_processes(token)
    assert wait_for_end(directory).exit_code == 0
