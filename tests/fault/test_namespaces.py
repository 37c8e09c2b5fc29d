"""Hosts that are hosts to the network: a namespace each, with its own address, joined by a bridge."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from flagvega.run.directory import RunDirectory
from tests.fault.conftest import wait_for_step
from tests.toy.cli import environment
from tests.toy.job import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and `ip`"),
]

TIMEOUT_S = 240
TOLERANCE = 1e-5
EXPERIMENT = """\
defaults:
  - train: tiny
  - _self_
experiment:
  exp_name: hosts
  task: {type: train, backend: megatron}
  runner: {nnodes: 2, master_addr: 10.213.7.1, master_port: 29511}
cluster:
  nodes:
    - {host: one, chip: emu-l, devices: 2}
    - {host: two, chip: cpu, devices: 2}
train:
  system:
    pipeline_model_parallel_size: 2
    hetero:
      enable_hetero: true
      hetero_process_meshes: [2, 1, 1, 1, 1,  1, 1, 1, 2, 1]
      hetero_device_types: [emu-l, cpu]
      hetero_pipeline_layer_split: [1, 3]
  model: {micro_batch_size: 4, train_iters: 3}
"""
SECOND_HOST_FIRST = (
    "train.system.hetero.hetero_device_types=[cpu,emu-l]",
    "train.system.hetero.hetero_process_meshes=[1,1,1,2,1,2,1,1,1,1]",
    "train.model.micro_batch_size=2",
)


def ip(*words: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if check and done.returncode:
        pytest.skip(f"no network namespaces here: ip {' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[str]]:
    """Names of two namespaces, 10.213.7.1 and 10.213.7.2."""
    bridge, names = f"fvb{os.getpid()}", [f"fv{os.getpid()}-{i}" for i in (1, 2)]
    try:
        ip("link", "add", bridge, "type", "bridge")
        ip("link", "set", bridge, "up")
        for i, name in enumerate(names, start=1):
            ip("netns", "add", name)
            ip("link", "add", f"{bridge}{i}", "type", "veth", "peer", "name", "e0", "netns", name)
            ip("link", "set", f"{bridge}{i}", "master", bridge, "up")
            ip("-n", name, "addr", "add", f"10.213.7.{i}/24", "dev", "e0")
            for link in ("e0", "lo"):
                ip("-n", name, "link", "set", link, "up")
        yield names
    finally:
        for name in names:
            ip("netns", "del", name, check=False)
        ip("link", "del", bridge, check=False)


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    folder = tmp_path / "conf"
    (folder / "train").mkdir(parents=True)
    (folder / "hosts.yaml").write_text(EXPERIMENT)
    shutil.copy(ROOT / "examples/gpt/conf/train/tiny.yaml", folder / "train")
    return folder


@pytest.fixture
def commands() -> Iterator[list[subprocess.Popen[str]]]:
    """Started commands, all of which are ended with the test."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        process.wait(timeout=TIMEOUT_S)


def launch(
    started: list[subprocess.Popen[str]], hosts: list[str], conf: Path, folders: list[Path], *words: str
) -> list[subprocess.Popen[str]]:
    """The same command on every host; of ``words``, those that begin with ``2:`` on the second only."""
    environ = {name: value for name, value in os.environ.items() if name != "GLOO_SOCKET_IFNAME"}
    for node, (host, folder) in enumerate(zip(hosts, folders, strict=True)):
        own = [word.removeprefix("2:") for word in words if node == 1 or not word.startswith("2:")]
        argv = ["ip", "netns", "exec", host, sys.executable, str(ROOT / "run.py")]
        argv += ["--config-path", str(conf), "--config-name", "hosts"]
        argv += [f"experiment.exp_dir={folder}", f"experiment.runner.node_rank={node}", *own]
        process = subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
    return started


def end(started: list[subprocess.Popen[str]], code: int) -> list[str]:
    """What each host said, once all have ended with ``code``."""
    said = []
    for process in started:
        out, err = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == code, out + err
        said.append(out + err)
    return said


def curve(folder: Path) -> list[tuple[float, float]]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(row["loss"], row["grad_norm"]) for row in rows]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[float, float]]:
    """The curve of one process."""
    folder = tmp_path_factory.mktemp("one")
    argv = [sys.executable, "run.py", "--config-path", "examples/gpt/conf", "--config-name", "one"]
    argv += [f"experiment.exp_dir={folder}", "train.model.train_iters=3"]
    subprocess.run(argv, cwd=ROOT, check=True, capture_output=True)
    return curve(folder)


def test_two_hosts_find_their_way_and_repeat_the_curve_of_one_process(
    hosts: list[str],
    conf: Path,
    commands: list[subprocess.Popen[str]],
    tmp_path: Path,
    reference: list[tuple[float, float]],
) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for said in end(launch(commands, hosts, conf, folders), 0):
        assert "no checkpoints: " in said
    for step, expected in zip(curve(folders[0]), reference, strict=True):
        assert step == pytest.approx(expected, rel=TOLERANCE)
    assert not (folders[1] / "metrics.jsonl").exists()


def test_hosts_may_share_a_folder_and_the_first_rank_may_be_on_the_second_host(
    hosts: list[str],
    conf: Path,
    commands: list[subprocess.Popen[str]],
    tmp_path: Path,
    reference: list[tuple[float, float]],
) -> None:
    words = [*SECOND_HOST_FIRST, "+experiment.envs.GLOO_SOCKET_IFNAME=e0"]
    end(launch(commands, hosts, conf, [tmp_path / "out"] * 2, *words), 0)
    assert (tmp_path / "out" / "logs" / "two" / "rank-0.log").exists()
    assert "export GLOO_SOCKET_IFNAME=e0" in (tmp_path / "out" / "job" / "node-1.sh").read_text()
    for step, expected in zip(curve(tmp_path / "out"), reference, strict=True):
        assert step == pytest.approx(expected, rel=TOLERANCE)


def test_a_host_with_another_yaml_is_told_by_both_and_nothing_starts(
    hosts: list[str], conf: Path, commands: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    launch(commands, hosts, conf, [tmp_path / "one", tmp_path / "two"], "2:train.model.optimizer.weight_decay=0.1")
    for said in end(commands, 4):
        assert "arguments.weight_decay: host 0 has 0.01, host 1 has 0.1" in said
    assert not list(tmp_path.glob("*/logs/*/rank-*.log"))


def test_one_host_that_is_asked_to_stop_takes_the_other_along_and_both_go_on_from_there(
    hosts: list[str], conf: Path, commands: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    folders = [tmp_path / "out"] * 2
    launch(commands, hosts, conf, folders, "train.model.train_iters=100000")
    wait_for_step(RunDirectory(folders[0]), 2)
    commands[1].send_signal(signal.SIGTERM)
    end(commands, 143)
    (checkpoint,) = folders[0].glob("checkpoints/iter_*")
    step = int(checkpoint.name.removeprefix("iter_"))
    commands.clear()
    said = end(launch(commands, hosts, conf, folders, f"train.model.train_iters={step + 1}"), 0)
    assert all(f"found the checkpoint of step {step}: going on" in each for each in said)


def test_hosts_that_share_no_folder_are_refused_when_checkpoints_are_wanted(
    hosts: list[str], conf: Path, commands: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for said in end(launch(commands, hosts, conf, folders, "train.system.checkpoint.save_interval=2"), 4):
        assert "the hosts do not share this folder" in said


def test_a_gateway_reaches_the_instances_of_another_host_and_strangers_do_not(
    hosts: list[str], commands: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    pytest.importorskip("aiohttp")
    if shutil.which("curl") is None:
        pytest.skip("needs `curl`")
    service = {"serve_id": "m", "engine": "toy", "engine_args": {"way": "paced"}, "resources": {"num_replicas": 2}}
    nodes = [{"host": f"10.213.7.{i}", "chip": "cpu"} for i in (1, 2)]
    experiment = {"exp_name": "shop", "exp_dir": str(tmp_path / "out"), "task": {"type": "serve"}}
    probing = {"probing": {"interval_s": 0.2}}
    config = {"experiment": experiment, "serve": [service], "cluster": {"nodes": nodes}, "gateway": probing}
    (tmp_path / "shop.yaml").write_text(json.dumps(config))
    for host in hosts:  # each knows its own address
        argv = ["ip", "netns", "exec", host, sys.executable, str(ROOT / "run.py")]
        argv += ["--config-path", str(tmp_path), "--config-name", "shop", "action=run"]
        commands.append(
            subprocess.Popen(argv, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    deadline = time.monotonic() + TIMEOUT_S
    while '"ready": 2}' not in fetch(hosts[0], "http://127.0.0.1:8080/health"):
        assert time.monotonic() < deadline
    question = ["-H", "Content-Type: application/json", "-d", '{"model": "toy", "prompt": "a", "max_tokens": 1}']
    for _ in range(4):
        assert '"text": "0 "' in fetch(hosts[0], "http://127.0.0.1:8080/v1/completions", *question)
    assert "not with this key" in fetch(hosts[0], "http://10.213.7.2:8001/v1/models")
    assert fetch(hosts[1], "http://127.0.0.1:8001/health", "-i") == ""  # it is at the host's address alone
    assert fetch(hosts[1], "http://10.213.7.1:8000/health", "-i") == ""  # beside the gateway, at its host's own
    commands[1].send_signal(signal.SIGTERM)
    end(commands, 143)


def fetch(host: str, url: str, *words: str) -> str:
    """What is there, seen from a host; empty when nothing answers."""
    argv = ["ip", "netns", "exec", host, "curl", "-s", "-m", "5", *words, url]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout
