"""Several hosts, as two command lines on this machine with a run directory each."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import pytest

from flagvega.run.directory import RunDirectory
from tests.fault.conftest import wait_for_step
from tests.toy.cli import call, start, write_conf

CLUSTER = """\
cluster:
  nodes:
    - {host: one, chip: cpu, devices: 2}
    - {host: two, chip: cpu, devices: 1}
"""


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    return write_conf(tmp_path, "system: {ranks: 3}\nmodel: {train_iters: 100000}\n", CLUSTER)


def words(folder: Path, node: int, port: int) -> list[str]:
    return [
        f"experiment.exp_dir={folder}/host{node}",
        "experiment.runner.nnodes=2",
        f"experiment.runner.node_rank={node}",
        "experiment.runner.master_addr=127.0.0.1",
        f"experiment.runner.master_port={port}",
    ]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def test_two_hosts_run_one_job_with_ranks_by_the_plan(conf: Path, tmp_path: Path) -> None:
    port = free_port()
    hosts = [start(conf, *words(tmp_path, node, port), "train.model.train_iters=3") for node in (1, 0)]
    for host in hosts:
        out, err = host.communicate(timeout=120)
        assert host.returncode == 0, out + err
    assert {path.name for path in tmp_path.glob("host0/logs/one/rank-*.log")} == {"rank-0.log", "rank-1.log"}
    assert [path.name for path in tmp_path.glob("host1/logs/two/rank-*.log")] == ["rank-2.log"]


def test_hosts_that_would_run_different_things_end_with_4(conf: Path, tmp_path: Path) -> None:
    port = free_port()
    hosts = [start(conf, *words(tmp_path, node, port), f"train.model.train_iters={3 + node}") for node in (0, 1)]
    for host in hosts:
        _, err = host.communicate(timeout=120)
        assert host.returncode == 4
        assert "job/rank.json.arguments.train_iters: host 0 has 3, host 1 has 4" in err
        assert "Traceback" not in err


def test_the_variables_of_a_cluster_say_which_host_this_is(conf: Path, tmp_path: Path) -> None:
    port = free_port()
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    hosts = [
        start(conf, f"experiment.exp_dir={tmp_path}/host{node}", "train.model.train_iters=3", **env, RANK=str(node))
        for node in (0, 1)
    ]
    for host in hosts:
        out, err = host.communicate(timeout=120)
        assert host.returncode == 0, out + err


def test_ctrl_c_on_a_foreground_run_saves_and_ends_with_130(tmp_path: Path) -> None:
    conf = write_conf(tmp_path, "model: {train_iters: 100000}\n")
    run = start(conf, "output=json")
    wait_for_step(RunDirectory(tmp_path / "out"), 2)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    assert json.loads(out)["state"] == "stopped"


def test_a_hostfile_of_other_hosts_dry_runs_and_run_prints_what_to_type(conf: Path) -> None:
    document = json.loads(call(conf, "action=dryrun", "output=json").stdout)
    assert {"job/node-0.sh", "job/node-1.sh"} <= set(document["files"])
    done = call(conf, "action=run")
    assert done.returncode == 4
    assert "two: python " in done.stderr
    assert "experiment.runner.node_rank=1" in done.stderr
