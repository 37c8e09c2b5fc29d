"""What goes wrong while ranks run, and how the run ends then."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import psutil
import pytest

from flagvega.run.prepare import prepare
from flagvega.run.processes import find_processes, is_alive
from flagvega.run.supervisor import Supervisor
from tests.fault.conftest import Start, rank_process, read, supervisor, wait_for_end, wait_for_step, wait_until
from tests.toy.job import toy_launch


def test_a_run_that_ends_well_leaves_0_and_logs_of_each_rank(start: Start) -> None:
    directory = start()
    run = wait_for_end(directory)
    assert (run.exit_code, run.state) == (0, "done"), run.reason
    for rank in run.ranks:
        assert directory.log_file(run.host, rank).read_text() == f"rank {rank} begins\n"


def test_a_killed_rank_ends_the_run_with_1_and_is_named(start: Start) -> None:
    directory = start("--steps", "100000", "--deaf")
    wait_for_step(directory, 2)
    rank_process(directory, 1).kill()
    run = wait_for_end(directory)
    assert (run.exit_code, run.state) == (1, "failed")
    assert "rank 1 was killed (SIGKILL" in run.reason


def test_a_killed_torchrun_leaves_no_orphan(start: Start) -> None:
    directory = start("--steps", "100000", "--deaf")
    wait_for_step(directory, 2)
    rank = rank_process(directory, 1)
    psutil.Process(read(directory).agent_pid).kill()
    run = wait_for_end(directory)
    assert (run.exit_code, run.state) == (1, "failed")
    assert "torchrun was killed (SIGKILL" in run.reason
    assert not is_alive(rank)


def test_an_exception_of_a_rank_is_shown(start: Start) -> None:
    directory = start("--steps", "100000", "--crash", "1", "--deaf")
    run = wait_for_end(directory)
    assert run.exit_code == 1
    assert "rank 1 ended with code 1" in run.reason
    shown = directory.supervisor_log.read_text()
    assert "Traceback" in shown
    assert "RuntimeError: the toy breaks" in shown


def test_the_verdict_of_the_ranks_is_the_exit_code(start: Start) -> None:
    run = wait_for_end(start("--code", "75"))
    assert (run.exit_code, run.state) == (75, "failed")


def test_sigterm_saves_and_ends_with_143(start: Start) -> None:
    directory = start("--steps", "100000")
    wait_for_step(directory, 2)
    supervisor(directory).terminate()
    run = wait_for_end(directory)
    assert (run.exit_code, run.state) == (143, "stopped")
    for rank in run.ranks:
        assert [event["event"] for event in directory.events(rank)][-2:] == ["checkpoint", "exit"]


def test_a_rank_that_fails_to_save_makes_a_stop_a_failure(start: Start) -> None:
    directory = start("--steps", "100000", "--crash-saving", "1")
    wait_for_step(directory, 2)
    supervisor(directory).terminate()
    run = wait_for_end(directory)
    assert (run.exit_code, run.state) == (1, "failed")
    assert "the toy's disk is full" in directory.supervisor_log.read_text()


def test_a_second_signal_ends_ranks_that_do_not_listen(start: Start) -> None:
    directory = start("--steps", "100000", "--deaf")
    wait_for_step(directory, 2)
    supervisor(directory).terminate()
    wait_until(lambda: read(directory).state == "stopping")
    supervisor(directory).terminate()
    run = wait_for_end(directory)
    assert run.exit_code == 143
    assert "no checkpoint was written in this run" in run.reason


def test_ranks_that_do_not_listen_are_ended_when_the_grace_is_over(start: Start) -> None:
    directory = start("--steps", "100000", "--deaf", grace_s=1)
    wait_for_step(directory, 2)
    supervisor(directory).terminate()
    run = wait_for_end(directory)
    assert "1 s have passed" in directory.supervisor_log.read_text()
    assert run.exit_code == 143


def test_a_supervisor_that_fails_leaves_no_rank_behind(tmp_path: Path) -> None:
    directory = prepare(toy_launch(tmp_path / "run", "--steps", "100000"), "toy", {}, {})

    def watch() -> None:
        if directory.metrics_file.exists():
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        Supervisor(directory, say=lambda _: None, watch=watch).supervise(os.environ)
    directory.lock.release()
    assert not find_processes(read(directory).token)
