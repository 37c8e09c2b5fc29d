"""A search of serving arguments with the real vLLM, by the product's commands."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from flagvega.records import read_json_lines
from flagvega.run.directory import RunDirectory
from flagvega.run.processes import find_processes
from tests.conftest import ROOT
from tests.rank.served import needs_vllm
from tests.rank.test_serve_plan import flagvega
from tools.bench.serve_engines import free_port
from tools.bench.tiny_model import ENGINE_ARGS, make_tiny_model

START_S = 400.0
GONE_S = 90.0

pytestmark = [*needs_vllm, pytest.mark.timeout(1200)]


def write_search(folder: Path) -> tuple[str, ...]:
    """A search of two configurations; the words of its command."""
    arguments = {**ENGINE_ARGS, "model": str(make_tiny_model(folder / "tiny")), "max_model_len": 512}
    content = {
        "experiment": {
            "exp_name": "t", "exp_dir": str(folder / "out"), "task": {"type": "serve"},
            "auto_tuner": {"space": {"max_num_seqs": [2, 4]}, "control": {"run_best": False, "min_trials": 2}},
        },
        "cluster": {"nodes": [{"chip": "emu-l", "devices": 1}]},
        "serve": [{"serve_id": "m", "engine_args": {**arguments, "port": free_port()}}],
        "traffic": {"rate_per_s": 50, "input_tokens": 40, "output_tokens": 20, "num_requests": 60,
                    "targets": {"first_token_s": 1}},
    }  # fmt: skip
    (folder / "exp.yaml").write_text(yaml.safe_dump(content))
    return "--config-path", str(folder), "--config-name", "exp", "action=auto_tune"


def wait_until_it_serves(search: subprocess.Popen[Any], trial: RunDirectory) -> None:
    deadline = time.monotonic() + START_S
    while all(event["event"] != "serving" for event in trial.events(0)):
        assert search.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_search_killed_with_an_engine_at_work_goes_on_and_leaves_nobody_behind(tmp_path: Path) -> None:
    words = write_search(tmp_path)
    root = tmp_path / "out" / "auto_tuner"
    second = RunDirectory(root / "trials" / "002")
    with (tmp_path / "search.log").open("wb") as log:
        search = subprocess.Popen([sys.executable, str(ROOT / "run.py"), *words], cwd=ROOT, stdout=log, stderr=log)
        try:
            wait_until_it_serves(search, second)
        finally:
            search.kill()
            search.wait()
    before = read_json_lines(root / "trials.jsonl")
    assert len(before) == 1
    run = second.read()
    assert run is not None
    deadline = time.monotonic() + GONE_S
    while find_processes(run.token) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not find_processes(run.token)
    answer = flagvega(*words)
    after = read_json_lines(root / "trials.jsonl")
    assert after[:1] == before
    assert sorted(trial["values"]["max_num_seqs"] for trial in after) == [2, 4]
    assert (
        answer["best"]["values"]["max_num_seqs"]
        == min(after, key=lambda trial: trial["time_s"])["values"]["max_num_seqs"]
    )
    assert json.loads((root / "trials" / "001" / "measured.json").read_text())["failures"] == 0
    for number in ("001", "002"):
        run = RunDirectory(root / "trials" / number).read()
        assert run is not None
        assert not find_processes(run.token)
