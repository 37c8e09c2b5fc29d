"""Hostile characters arrive unharmed; secrets are written nowhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flagvega.launch.script import secrets
from flagvega.records import read_json
from flagvega.run.prepare import prepare, start_detached
from tests.fault.conftest import wait_for_end
from tests.toy.job import toy_launch

WORDS = [
    "a b",
    "it's",
    '"$HOME"',
    "$(touch marker)",
    "`touch marker`",
    "; touch marker",
    "64(x2)",
    "a\nb",
    "größe 内",
    "*",
    "!!",
]
SECRET = "s3cr3t-vàlue"


def test_words_paths_and_variables_arrive_as_they_are_and_secrets_stay_out_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "a b'\"$(touch marker)\n;größe"
    env = {f"WORD_{i}": word for i, word in enumerate(WORDS)} | {"WANDB_API_KEY": SECRET}
    monkeypatch.chdir(tmp_path)
    launch = toy_launch(run_dir, "--echo", *WORDS, num_ranks=1, env=env, before_start="export LIVE=1; echo here")
    directory = prepare(launch, "toy", {}, {})
    start_detached(directory, {**os.environ, **secrets(launch, 0)})
    run = wait_for_end(directory)
    assert run.exit_code == 0, run.reason
    echo = read_json(run_dir / "echo-0.json")
    assert echo["argv"][-len(WORDS) :] == WORDS
    assert {name: echo["env"][name] for name in env} == env
    assert echo["env"]["LIVE"] == "1"
    assert directory.agent_log(run.host).read_text().startswith("here\n")
    assert not list(tmp_path.rglob("marker"))
    (run_dir / "echo-0.json").unlink()
    written = [path for path in run_dir.rglob("*") if path.is_file()]
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]


def test_after_stop_runs_when_everything_has_ended(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    launch = toy_launch(run_dir, num_ranks=1, after_stop=f"pgrep -f {run_dir}/job/rank.sh; touch '{tmp_path}/after'")
    directory = prepare(launch, "toy", {}, {})
    start_detached(directory, os.environ)
    wait_for_end(directory)
    assert (tmp_path / "after").exists()
