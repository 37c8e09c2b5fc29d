"""Services on several hosts: two command lines on this machine, with an address each and one folder."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from flagvega.run.directory import Run, RunDirectory
from flagvega.run.processes import find_processes
from flagvega.serve.sharing import KEY_FILE
from tests.conftest import ROOT
from tests.fault.test_keeper import PATIENCE_S, free_port
from tests.fault.test_serving_runs import ask
from tests.toy.cli import environment

pytest.importorskip("aiohttp")

HOSTS = ("127.0.0.2", "127.0.0.3")


class Hosts:
    """An experiment of two instances on each of two hosts."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.gateway, self.first, self.meeting = folder, free_port(), free_port(), free_port()
        self.started: list[subprocess.Popen[str]] = []
        entry = {"serve_id": "m", "engine": "toy", "engine_args": {"way": "paced", "port": self.first},
                 "resources": {"num_replicas": 2}}  # fmt: skip
        experiment = {"exp_name": "toy", "exp_dir": str(folder / "out"), "task": {"type": "serve"},
                      "runner": {"nnodes": 2, "master_port": self.meeting}}  # fmt: skip
        cluster = {"nodes": [{"host": host, "chip": "cpu", "devices": 1} for host in HOSTS]}
        gateway = {"port": self.gateway, "probing": {"interval_s": 0.2, "slow_start_s": 0.0}}
        config = {"experiment": experiment, "serve": [entry], "cluster": cluster, "gateway": gateway}
        (folder / "toy.yaml").write_text(yaml.safe_dump(config))

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, str(ROOT / "run.py"), "--config-path", str(self.folder), "--config-name", "toy", *words]

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.argv(*words), env=environment(), capture_output=True, text=True, check=False,
                              timeout=120)  # fmt: skip

    def start(self, *words: str, nodes: Sequence[int] = (0, 1)) -> None:
        """The same command on each; ``1:`` before a word is for the second alone."""
        for node in nodes:
            own = [word.removeprefix("1:") for word in words if node or not word.startswith("1:")]
            argv = self.argv(f"experiment.runner.node_rank={node}", "grace_s=30", *own)
            self.started.append(
                subprocess.Popen(argv, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            )

    def end(self, node: int) -> tuple[int, str]:
        out, err = self.started[node].communicate(timeout=PATIENCE_S)
        return self.started[node].returncode, out + err

    def run(self, node: int) -> Run:
        run = RunDirectory(self.folder / "out", node).read()
        assert run is not None
        return run

    def health(self) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.gateway}/health", timeout=5) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            return dict(json.load(error))
        except OSError:
            return {"ready": 0}

    def wait(self, seen: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not seen():
            assert time.monotonic() < deadline, self.health()
            assert all(each.poll() is None for each in self.started) or len(self.started) < 2, [
                each.communicate() for each in self.started if each.poll() is not None
            ]
            time.sleep(0.05)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    found = Hosts(tmp_path)
    yield found
    for each in found.started:
        each.terminate()
        each.wait(PATIENCE_S)
    for directory in (RunDirectory(tmp_path / "out", node) for node in (0, 1)):
        run = directory.read()
        assert run is None or find_processes(run.token) == []


def has_served(directory: RunDirectory, number: int) -> bool:
    """Whether the instance on the second host became ready so often."""
    return len([event for event in directory.events(1) if event["event"] == "serving"]) == number


def keeper(run: Run) -> int:
    assert run.agent_pid is not None
    return run.agent_pid


def test_one_gateway_serves_from_all_hosts_and_one_that_is_asked_to_stop_has_all_finish(hosts: Hosts) -> None:
    hosts.start()
    hosts.wait(lambda: hosts.health()["ready"] == 2)
    assert {ask(hosts.gateway, f"p{i}", "toy") for i in range(8)} == {"0 "}
    key = hosts.folder / "out" / KEY_FILE
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    with pytest.raises(urllib.error.HTTPError, match="401"):  # a stranger asks the instance on the other host
        urllib.request.urlopen(f"http://{HOSTS[1]}:{hosts.first + 1}/v1/completions", b"{}")
    hosts.started[1].send_signal(signal.SIGTERM)
    assert [hosts.end(node)[0] for node in (0, 1)] == [143, 143]
    assert [hosts.run(node).state for node in (0, 1)] == ["stopped", "stopped"]
    secret = key.read_bytes()
    assert not [path for path in hosts.folder.rglob("*") if path.is_file() and path != key
                and secret in path.read_bytes()]  # fmt: skip


@pytest.mark.slow
def test_a_run_goes_on_with_the_hosts_that_are_left_until_others_join_again(hosts: Hosts) -> None:
    hosts.start()
    hosts.wait(lambda: hosts.health()["ready"] == 2)
    os.kill(keeper(hosts.run(1)), signal.SIGKILL)
    code, said = hosts.end(1)
    assert code == 1, said
    assert "flagvega.serve.keeper was killed (SIGKILL" in hosts.run(1).reason
    hosts.started.pop()
    hosts.wait(lambda: any("1 of 2 instances are left" in note for note in hosts.run(0).notes))
    assert hosts.health()["ready"] == 1
    assert {ask(hosts.gateway, f"p{i}", "toy") for i in range(4)} == {"0 "}
    shown = json.loads(hosts.call("action=status", "output=json").stdout)["runs"]
    assert [(each["state"], each["host"]) for each in shown] == [("running", HOSTS[0]), ("failed", HOSTS[1])]
    hosts.start("gateway.port=1", nodes=[1])
    code, said = hosts.end(-1)
    assert code == 4
    assert f"gateway.port: host 0 has {hosts.gateway}, host 1 has 1" in said
    hosts.started.pop()
    hosts.start(nodes=[1])
    hosts.wait(lambda: hosts.health()["ready"] == 2)
    hosts.wait(lambda: any("back: 2 of 2 instances are left" in note for note in hosts.run(0).notes))
    assert hosts.call("action=stop").returncode == 0
    assert [hosts.end(node)[0] for node in (0, 1)] == [143, 143]


@pytest.mark.slow
def test_without_the_host_of_the_gateway_nothing_goes_on(hosts: Hosts) -> None:
    hosts.start()
    hosts.wait(lambda: hosts.health()["ready"] == 2)
    os.kill(keeper(hosts.run(0)), signal.SIGKILL)
    assert [hosts.end(node)[0] for node in (0, 1)] == [1, 1]
    assert f"the host {HOSTS[0]}, where the gateway is, is gone" in hosts.run(1).reason


@pytest.mark.slow
def test_an_instance_that_cannot_be_kept_is_given_up_and_told_on_the_first_host(hosts: Hosts) -> None:
    hosts.start()
    hosts.wait(lambda: hosts.health()["ready"] == 2)
    directory = RunDirectory(hosts.folder / "out")
    for number in range(1, 5):
        hosts.wait(partial(has_served, directory, number))
        os.kill([event["pid"] for event in directory.events(1) if event["event"] == "start"][-1], signal.SIGKILL)
    code, said = hosts.end(1)
    assert code == 1, said
    hosts.started.pop()
    hosts.wait(lambda: any("1 of 2 instances are left" in note for note in hosts.run(0).notes))


@pytest.mark.slow
def test_hosts_that_share_no_folder_or_mean_different_things_end_with_4(hosts: Hosts) -> None:
    hosts.start(f"1:experiment.exp_dir={hosts.folder}/other")
    for node in (0, 1):
        code, said = hosts.end(node)
        assert code == 4
        assert "the hosts do not share this folder" in said
    hosts.started.clear()
    hosts.start("1:gateway.port=1")
    for node in (0, 1):
        code, said = hosts.end(node)
        assert code == 4
        assert f"gateway.port: host 0 has {hosts.gateway}, host 1 has 1" in said
