"""A tuner that is killed loses at most the running trial, and leaves nobody behind."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.toy.cli import call, start
from tests.toy.job import ROOT
from tests.toy.tuning import PYTHONPATH, read_trials, write_search

SPACE = "{step_s: [0.05, 0.02, 0.08, 0.03, 0.06, 0.04], trouble: [none, crash]}"
GONE_S = 15.0


def relatives(folder: Path) -> list[psutil.Process]:
    """All processes that have the folder in their command line."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill_after(process: subprocess.Popen[str], folder: Path, delay_s: float) -> bool:
    """Kill a search with -9 after a while, and see that nothing of it stays; whether it was still at it."""
    try:
        time.sleep(delay_s)
        was_alive = process.poll() is None
    finally:
        process.kill()
        process.communicate()
    deadline = time.monotonic() + GONE_S
    while relatives(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert relatives(folder) == []
    return was_alive


def search(conf: Path) -> subprocess.Popen[str]:
    return start(conf, "action=auto_tune", PYTHONPATH=PYTHONPATH)


@pytest.mark.parametrize("num_kills", [2, pytest.param(30, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
def test_a_killed_search_goes_on_to_the_same_best_with_no_trial_lost_or_doubled(tmp_path, num_kills):
    rng = random.Random(7)
    conf = write_search(tmp_path, SPACE, "patience: 50")
    seen: list[dict] = []
    num_in_action = 0
    for _ in range(num_kills):
        num_in_action += kill_after(search(conf), tmp_path, rng.uniform(0.3, 4.0))
        trials = read_trials(tmp_path)
        assert trials[: len(seen)] == seen
        seen = trials

    result = call(conf, "action=auto_tune", PYTHONPATH=PYTHONPATH)

    assert result.returncode == 0, result.stderr
    assert num_in_action >= 1
    trials = read_trials(tmp_path)
    assert trials[: len(seen)] == seen
    assert len({trial["key"] for trial in trials}) == len(trials)
    assert len({trial["number"] for trial in trials}) == len(trials)
    good = [trial for trial in trials if trial["status"] == "ok"]
    assert min(good, key=lambda trial: trial["time_s"])["values"]["step_s"] == 0.02
    assert relatives(tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_so_does_a_search_with_the_real_engine(tmp_path):
    words = [
        sys.executable, str(ROOT / "run.py"), "--config-path", "examples/gpt/conf", "--config-name", "one",
        "cluster={nodes: [{chip: emu-l}]}",
        "action=auto_tune", f"experiment.exp_dir={tmp_path}/out",
        "experiment.auto_tuner={space: {micro_batch_size: [1, 2, 4]}, algo: {name: grid}, control: "
        "{warmup_iters: 1, train_iters: 2, max_iters: 2, run_best: false}}",
    ]  # fmt: skip
    rng, seen = random.Random(5), list[dict]()
    for _ in range(2):
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        kill_after(process, tmp_path, rng.uniform(4.0, 14.0))
        trials = read_trials(tmp_path)
        assert trials[: len(seen)] == seen
        seen = trials

    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr
    trials = read_trials(tmp_path)
    assert trials[: len(seen)] == seen
    assert sorted(trial["values"]["micro_batch_size"] for trial in trials) == [1, 2, 4]
    assert relatives(tmp_path) == []


def test_another_shell_sees_a_search_reads_its_logs_and_stops_it(tmp_path):
    conf = write_search(tmp_path, "{step_s: [0.03, 60]}")
    here = f"run_dir={tmp_path}/out"
    process = search(conf)
    deadline = time.monotonic() + 30.0
    while not (tmp_path / "out/auto_tuner/trials/002/events/rank-0.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)

    seen = json.loads(call(None, "action=status", here, "output=json").stdout)["search"]
    logs = json.loads(call(None, "action=logs", here, "output=json").stdout)["logs"]
    first = call(None, "action=logs", here, "trial=1", "rank=0")
    stopped = call(None, "action=stop", here)
    process.communicate(timeout=30.0)
    after = json.loads(call(None, "action=status", here, "output=json").stdout)["search"]

    assert (seen["state"], seen["num_trials"], seen["best"]["trial"]) == ("running", 1, 1)
    assert [Path(path).name for path in seen["running"]] == ["002"]
    assert "trials/002/" in logs["0"]["file"]
    assert "trials/001/" in first.stdout
    assert "rank 0 begins" in first.stdout
    assert stopped.stdout == "search: stopped\n"
    assert process.returncode == 143
    assert (after["state"], after["running"]) == ("stopped", [])
    assert relatives(tmp_path) == []


def test_the_search_of_a_dead_tuner_is_told_and_cleared(tmp_path):
    conf = write_search(tmp_path, "{step_s: [0.9, 0.8]}")
    process = search(conf)
    while not (tmp_path / "out/auto_tuner/trials/001/metrics.jsonl").exists():
        time.sleep(0.05)
    process.kill()
    process.communicate()

    died = call(None, "action=status", f"run_dir={tmp_path}/out")
    stopped = call(None, "action=stop", f"run_dir={tmp_path}/out")

    assert "died" in died.stdout
    assert stopped.stdout == "search: already stopped\n"
    assert relatives(tmp_path) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_search_that_is_asked_to_end_leaves_nothing_and_a_report(tmp_path, number, code):
    conf = write_search(tmp_path, "{step_s: [0.9, 0.8]}")
    process = search(conf)
    deadline = time.monotonic() + 30.0
    while not list(tmp_path.glob("out/auto_tuner/trials/*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)

    process.send_signal(number)
    process.communicate(timeout=30.0)

    assert process.returncode == code
    assert relatives(tmp_path) == []
    assert (tmp_path / "out/report/tune.html").exists()
    assert call(conf, "action=auto_tune", PYTHONPATH=PYTHONPATH).returncode == 0
