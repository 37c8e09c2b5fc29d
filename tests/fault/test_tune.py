"""A tuner that is killed loses at most the running trial, and leaves nobody behind."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.toy.cli import PLUGIN, call, start
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
    assert best_of(trials)["step_s"] == 0.02
    assert relatives(tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_so_does_a_search_with_the_real_engine(tmp_path):
    def words(folder: Path) -> list[str]:
        return [
            sys.executable, str(ROOT / "run.py"), "--config-path", "examples/gpt/conf", "--config-name", "one",
            "cluster={nodes: [{chip: emu-l-slow}]}", "action=auto_tune", f"experiment.exp_dir={folder}/out",
            "experiment.auto_tuner={space: {micro_batch_size: [1, 2, 4]}, control: "
            "{warmup_iters: 2, train_iters: 2, max_iters: 2, run_best: false}}",
        ]  # fmt: skip

    calm, killed = tmp_path / "calm", tmp_path / "killed"
    began = time.monotonic()
    subprocess.run(words(calm), cwd=ROOT, capture_output=True, check=True)
    took_s = time.monotonic() - began
    rng, seen = random.Random(5), list[dict]()
    for half in range(2):
        process = subprocess.Popen(words(killed), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert kill_after(process, killed, took_s * (0.5 * half + rng.uniform(0.1, 0.4)) / (1 + half))
        trials = read_trials(killed)
        assert trials[: len(seen)] == seen
        seen = trials

    result = subprocess.run(words(killed), cwd=ROOT, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr
    trials = read_trials(killed)
    assert trials[: len(seen)] == seen
    assert len({trial["key"] for trial in trials}) == len(trials)
    assert best_of(trials) == best_of(read_trials(calm))
    assert relatives(tmp_path) == []


def best_of(trials: list[dict]) -> dict:
    """What the fastest trial chose."""
    return min((trial for trial in trials if trial["status"] == "ok"), key=lambda trial: trial["time_s"])["values"]


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


@pytest.mark.slow
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


def search_of_two_hosts(folder: Path, *more: str, devices: tuple[int, int] = (2, 1)) -> list[subprocess.Popen[str]]:
    """Two command lines on this machine, with one shared run directory; host 0 first."""
    conf = write_search(folder, SPACE, "patience: 50")
    text = (conf / "toy.yaml").read_text()
    one, two = devices
    nodes = f"[{{host: one, chip: cpu, devices: {one}}}, {{host: two, chip: cpu, devices: {two}}}]"
    (conf / "toy.yaml").write_text(f"{text}cluster: {{nodes: {nodes}}}\n")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    words = ["action=auto_tune", "experiment.runner.nnodes=2", "experiment.runner.master_addr=127.0.0.1",
             f"experiment.runner.master_port={port}", *more]  # fmt: skip
    nodes = [start(conf, *words, f"experiment.runner.node_rank={node}", PYTHONPATH=str(PLUGIN)) for node in (1, 0)]
    return nodes[::-1]


@pytest.mark.slow
def test_several_hosts_run_the_trials_of_one_search(tmp_path):
    hosts = search_of_two_hosts(tmp_path, "train.system.ranks=3", "experiment.auto_tuner.control.max_trials=3")

    said = [host.communicate(timeout=120) for host in hosts]

    assert [host.returncode for host in hosts] == [0, 0], said
    trials = read_trials(tmp_path)
    assert len(trials) == 3
    assert sum(trial["status"] in ("ok", "worse") for trial in trials) >= 2
    assert "3 trials ran here" in said[1][0]
    logs = {path.name for path in (tmp_path / "out/auto_tuner/trials/001/logs").glob("*/rank-*.log")}
    assert logs == {"rank-0.log", "rank-1.log", "rank-2.log"}
    assert relatives(tmp_path) == []


def test_hosts_alike_run_trials_side_by_side(tmp_path):
    space = ["experiment.auto_tuner.space.step_s=[0.3,0.2]", "experiment.auto_tuner.space.trouble=[none,crash]"]
    hosts = search_of_two_hosts(tmp_path, "experiment.auto_tuner.control.parallel=2", *space, devices=(2, 2))

    said = [host.communicate(timeout=120) for host in hosts]

    assert [host.returncode for host in hosts] == [0, 0], said
    trials = read_trials(tmp_path)
    assert sorted(trial["number"] for trial in trials) == [1, 2, 3, 4]
    assert best_of(trials)["step_s"] == 0.2
    assert sum(trial["status"] == "crash" for trial in trials) == 2
    by_host = [path.name for path in tmp_path.glob("out/auto_tuner/trials/*/logs/*") if path.is_dir()]
    assert set(by_host) == {"one", "two"}
    spans = sorted((trial["started"], trial["started"] + trial["took_s"]) for trial in trials)
    assert any(later < end for (_, end), (later, _) in zip(spans, spans[1:], strict=False))
    assert relatives(tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_hosts_whose_leader_ends_leave(tmp_path, number):
    leader, other = search_of_two_hosts(tmp_path, "train.system.ranks=3", "experiment.auto_tuner.space.step_s=[60]")
    while not list(tmp_path.glob("out/auto_tuner/trials/001/events/rank-2.jsonl")):
        time.sleep(0.05)

    leader.send_signal(number)
    leader.communicate()
    _, said = other.communicate(timeout=120)

    assert other.returncode == (0 if number == signal.SIGTERM else 4)
    assert ("the search is over" if number == signal.SIGTERM else "host 0 has not been heard of") in said
    assert "Traceback" not in said
    assert relatives(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
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
