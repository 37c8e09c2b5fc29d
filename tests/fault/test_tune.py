"""A tuner that is killed loses at most the running trial, and leaves nobody behind."""

from __future__ import annotations

import random
import time
from pathlib import Path

import psutil
import pytest

from tests.toy.cli import call, start
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


def kill_after(conf: Path, folder: Path, delay_s: float) -> bool:
    """Start a search, kill it with -9 after a while, and see that nothing of it stays; whether it was still at it."""
    process = start(conf, "action=auto_tune", PYTHONPATH=PYTHONPATH)
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


@pytest.mark.parametrize("num_kills", [2, pytest.param(30, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
def test_a_killed_search_goes_on_to_the_same_best_with_no_trial_lost_or_doubled(tmp_path, num_kills):
    rng = random.Random(7)
    conf = write_search(tmp_path, SPACE, "patience: 50")
    seen: list[dict] = []
    num_in_action = 0
    for _ in range(num_kills):
        num_in_action += kill_after(conf, tmp_path, rng.uniform(0.3, 4.0))
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
