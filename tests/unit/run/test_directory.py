"""The run directory and the state of a run."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from flagvega.actions.call import Call
from flagvega.actions.status import act
from flagvega.config.command import Command
from flagvega.errors import ConfigError, PreflightError
from flagvega.launch.script import AFTER_STOP_SCRIPT
from flagvega.records import Owner, append_json_line, read_json, write_json
from flagvega.run.directory import RunDirectory, find_runs
from flagvega.run.prepare import prepare
from tests.toy.job import toy_launch


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    found = prepare(toy_launch(tmp_path / "run"), "toy", {"total_steps": 9}, {})
    found.lock.release()
    return found


def status(directory: RunDirectory) -> str:
    call = Call(Command(options={"run_dir": str(directory.root)}), Console(file=io.StringIO()))
    return str(act(call).document["runs"][0]["state"])


def test_what_is_written_is_read(directory: RunDirectory) -> None:
    run = directory.read()
    assert run is not None
    assert (run.state, run.ranks, run.watch) == ("starting", (0, 1), {"total_steps": 9})
    written = directory.write(run, state="done", exit_code=0)
    assert directory.read() == written == replace(run, state="done", exit_code=0)


def test_a_field_that_another_version_wrote_is_passed_over(directory: RunDirectory) -> None:
    write_json(directory.run_file, {**read_json(directory.run_file), "mood": "good"})
    assert directory.read() is not None


def test_a_run_whose_supervisor_died_is_not_called_running(directory: RunDirectory) -> None:
    run = directory.read()
    assert run is not None
    assert status(directory) == "starting"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        directory.write(run, state="running", supervisor=Owner.of(child.pid))
        assert status(directory) == "running"
        child.kill()
    assert status(directory) == "died"


def test_metrics_of_earlier_runs_are_not_this_run_s(directory: RunDirectory) -> None:
    append_json_line(directory.metrics_file, {"step": 1})
    again = prepare(toy_launch(directory.root), "toy", {}, {})
    append_json_line(again.metrics_file, {"step": 2})
    assert again.metrics().read() == [{"step": 2}]
    again.lock.release()


def test_an_after_stop_that_was_taken_out_of_the_yaml_is_not_run_again(directory: RunDirectory) -> None:
    for after_stop, is_there in (("echo", True), ("", False)):
        prepare(toy_launch(directory.root, after_stop=after_stop), "toy", {}, {}).lock.release()
        assert (directory.root / AFTER_STOP_SCRIPT).exists() is is_there


def test_hosts_that_share_a_directory_have_files_of_their_own(directory: RunDirectory) -> None:
    run = directory.read()
    assert run is not None
    RunDirectory(directory.root, 10).write(replace(run, node=10))
    RunDirectory(directory.root, 2).write(replace(run, node=2))
    assert [found.node for found in find_runs(directory.root)] == [0, 2, 10]


def test_a_run_file_of_another_version_is_refused(directory: RunDirectory) -> None:
    write_json(directory.run_file, {"schema": 99})
    with pytest.raises(ConfigError, match="another version"):
        directory.read()


def test_a_directory_that_cannot_be_written_is_a_fault_of_the_machine(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PreflightError, match="cannot be written"):
        prepare(toy_launch(tmp_path / "file" / "run"), "toy", {}, {})


def test_what_cannot_be_written_is_refused_and_the_lock_given_back(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PreflightError, match="cannot be written: Not a directory"):
        prepare(toy_launch(tmp_path / "file" / "run"), "toy", {}, {})
    (tmp_path / "run" / "plan.json").mkdir(parents=True)
    with pytest.raises(PreflightError, match="give another experiment.exp_dir"):
        prepare(toy_launch(tmp_path / "run"), "toy", {}, {})
    assert RunDirectory(tmp_path / "run").lock.owner() is None
