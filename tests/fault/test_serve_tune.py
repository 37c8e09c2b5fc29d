"""Searches of serving configurations, with a toy engine and a toy of its benchmark."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from flagvega.records import read_json_lines
from tests.fault.test_keeper import free_port
from tests.fault.test_tune import kill_after, relatives
from tests.toy.cli import call, start
from tests.toy.tuning import PYTHONPATH

pytest.importorskip("aiohttp")


def write_search(folder: Path, space: dict[str, Any], **control: Any) -> Path:
    """A search of the toy; its configuration folder."""
    conf = folder / "conf"
    conf.mkdir()
    config = {
        "experiment": {"exp_name": "toy", "exp_dir": str(folder / "out"), "task": {"type": "serve"},
                       "auto_tuner": {"space": space, "control": {"run_best": False, **control}}},
        "serve": [{"serve_id": "m", "engine": "toy",
                   "engine_args": {"model": "x", "way": "paced", "step_s": 0.02, "port": free_port()}}],
        "traffic": {"rate_per_s": 40, "input_tokens": 8, "output_tokens": 8, "num_requests": 24,
                    "targets": {"first_token_s": 0.2}},
    }  # fmt: skip
    (conf / "toy.yaml").write_text(yaml.safe_dump(config))
    return conf


def trials_of(folder: Path) -> list[dict[str, Any]]:
    return read_json_lines(folder / "out" / "auto_tuner" / "trials.jsonl")


def test_a_search_goes_on_past_what_dies_and_leaves_a_yaml_that_can_be_run(tmp_path: Path) -> None:
    conf = write_search(tmp_path, {"max_num_seqs": [16], "way": ["gone", "paced"]}, min_trials=2)
    result = call(conf, "action=auto_tune", "output=json", PYTHONPATH=PYTHONPATH)
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["best"]["values"] == {"max_num_seqs": 16, "way": "paced"}
    assert answer["best"]["in_time"] == "100.0%"
    (dead,) = [trial for trial in trials_of(tmp_path) if trial["values"]["way"] == "gone"]
    assert dead["status"] == "crash"
    assert "ended by itself" in dead["reason"]
    best = Path(answer["files"]["yaml"])
    assert yaml.safe_load(best.read_text())["serve"][0]["engine_args"]["max_num_seqs"] == 16
    page = (tmp_path / "out" / "report" / "tune.html").read_text()
    assert "seconds a good request" in page
    assert "in_time" in page
    assert relatives(tmp_path) == []


@pytest.mark.slow
def test_a_killed_search_goes_on_and_leaves_nobody_behind(tmp_path: Path) -> None:
    conf = write_search(tmp_path, {"max_num_seqs": [1, 2, 4, 8]}, min_trials=4, patience=9)
    seen: list[dict[str, Any]] = []
    for delay_s in (2.0, 4.0, 6.0):
        kill_after(start(conf, "action=auto_tune", PYTHONPATH=PYTHONPATH), tmp_path, delay_s)
        trials = trials_of(tmp_path)
        assert trials[: len(seen)] == seen
        seen = trials
        time.sleep(0.5)
    result = call(conf, "action=auto_tune", PYTHONPATH=PYTHONPATH)
    assert result.returncode == 0, result.stderr
    trials = trials_of(tmp_path)
    assert trials[: len(seen)] == seen
    assert len({trial["key"] for trial in trials}) == len(trials)
    times = {trial["values"]["max_num_seqs"]: trial["time_s"] for trial in trials}
    assert times[1] > 2 * min(times.values())
    assert relatives(tmp_path) == []
