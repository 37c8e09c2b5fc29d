"""Where clusters come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flagvega.cluster import source
from flagvega.cluster.nodes import Node
from flagvega.cluster.source import find_cluster
from flagvega.config.spec import Commands, Runner, Spec, Task
from flagvega.errors import ConfigError
from flagvega.layout.request import LayoutRequest, MeshRequest
from flagvega.platform import FoundDevice


def spec(runner: Runner | None = None, blocks: Mapping[str, Any] | None = None, given: tuple[str, ...] = ()) -> Spec:
    where = {f"experiment.runner.{key}": f"e.yaml:1 experiment.runner.{key}" for key in given}
    where["cluster.nodes"] = "e.yaml:9 cluster.nodes"
    return Spec("x", Path("x"), Task(), runner or Runner(), {}, Commands(), {}, blocks or {}, where)


def request(*meshes: MeshRequest) -> LayoutRequest:
    return LayoutRequest(meshes or (MeshRequest(),), 4, 1, 128)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four H200 are here: drivers cannot be had in a unit test."""
    found = [FoundDevice("nvidia", i, "h200-sxm", "NVIDIA H200") for i in range(4)]
    monkeypatch.setattr(source, "detect_devices", lambda: found)


def test_the_block_repeats_and_merges_hosts() -> None:
    nodes = [
        {"host": "a", "chip": "emu-l", "devices": 2},
        {"host": "a", "chip": "emu-s", "devices": 1},
        {"host": "b", "chip": "A800", "devices": 2, "count": 2},
        {"chip": "cpu"},
    ]
    cluster = find_cluster(spec(blocks={"cluster": {"nodes": nodes}}), request())
    assert [(node.host, node.devices) for node in cluster.nodes] == [
        ("a", ("emu-l", "emu-l", "emu-s")),
        ("b-0", ("a800-sxm-80g",) * 2),
        ("b-1", ("a800-sxm-80g",) * 2),
        ("localhost", ("cpu",)),
    ]


def test_an_unknown_chip_of_the_block_is_a_fault_at_its_line() -> None:
    with pytest.raises(ConfigError) as error:
        find_cluster(spec(blocks={"cluster": {"nodes": [{"chip": "emu-xl"}]}}), request())
    assert "e.yaml:9" in str(error.value)
    assert "did you mean emu-" in str(error.value)


def test_a_hostfile_gives_hosts_chips_and_devices(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("a slots=8 type=A800\nb slots=16 type=BI100\n")
    cluster = find_cluster(spec(Runner(hostfile=str(tmp_path / "hosts"))), request())
    assert [(node.host, len(node.devices), node.devices[0]) for node in cluster.nodes] == [
        ("a", 8, "a800-sxm-80g"),
        ("b", 16, "bi-v100"),
    ]


def test_a_hostfile_is_also_found_beside_the_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/hosts").write_text("host-a slots=2 type=cpu\n")
    monkeypatch.chdir(tmp_path)
    found = find_cluster(replace(spec(Runner(hostfile="hosts")), folder=tmp_path / "conf"), request(MeshRequest()))
    assert found.nodes == (Node("host-a", ("cpu", "cpu")),)


def test_a_hostfile_that_is_nowhere_is_a_fault_of_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    where = {"experiment.runner.hostfile": "e.yaml:7 experiment.runner.hostfile"}
    with pytest.raises(ConfigError, match=r"e.yaml:7 experiment.runner.hostfile: there is no hostfile hosts") as error:
        find_cluster(replace(spec(Runner(hostfile="hosts")), folder=tmp_path / "conf", where=where), request())
    assert f"looked for hosts and {tmp_path / 'conf/hosts'}" in str(error.value)


def test_nnodes_and_nproc_per_node_take_a_part_of_the_hostfile(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("a slots=8 type=A800\nb slots=8 type=A800\n")
    runner = Runner(hostfile=str(tmp_path / "hosts"), nnodes=1, nproc_per_node=4)
    cluster = find_cluster(spec(runner, given=("nnodes", "nproc_per_node")), request())
    assert [len(node.devices) for node in cluster.nodes] == [4]


def test_a_host_without_type_has_the_one_chip_that_the_meshes_name(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("a slots=2\n")
    runner = Runner(hostfile=str(tmp_path / "hosts"))
    assert find_cluster(spec(runner), request(MeshRequest(chip="emu-l"))).nodes[0].devices == ("emu-l", "emu-l")
    with pytest.raises(ConfigError, match="host a has no type, but the meshes name several chips"):
        find_cluster(spec(runner), request(MeshRequest(chip="emu-l"), MeshRequest(chip="emu-s")))


def test_an_unknown_type_of_a_hostfile_is_a_fault_at_its_line(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("a slots=2 type=A8000\n")
    with pytest.raises(ConfigError, match=r"hosts:1: unknown chip 'A8000'"):
        find_cluster(spec(Runner(hostfile=str(tmp_path / "hosts"))), request())


def test_a_cpu_holds_as_many_ranks_as_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "detect_devices", lambda: [FoundDevice("cpu", 0, "cpu", "cpu")])
    assert find_cluster(spec(), request(MeshRequest(tp=2, pp=3))).nodes[0].devices == ("cpu",) * 6
    assert find_cluster(spec(Runner(nproc_per_node=8)), request(MeshRequest(tp=2))).num_devices == 8


def test_emulated_chips_are_wherever_they_are_named() -> None:
    wanted = request(MeshRequest(tp=2, dp=1, chip="emu-l"), MeshRequest(dp=2, pp=2, chip="emu-s"))
    assert find_cluster(spec(), wanted).nodes[0].devices == ("emu-l",) * 2 + ("emu-s",) * 4


@pytest.mark.usefixtures("gpus")
def test_the_devices_that_are_here_are_all_offered() -> None:
    assert find_cluster(spec(), request()).nodes[0].devices == ("h200-sxm",) * 4


@pytest.mark.usefixtures("gpus")
def test_nproc_per_node_limits_the_devices_that_are_here() -> None:
    assert find_cluster(spec(Runner(nproc_per_node=2)), request()).nodes[0].devices == ("h200-sxm",) * 2


@pytest.mark.usefixtures("gpus")
def test_a_device_that_is_here_and_emulated_ones_mix() -> None:
    wanted = request(MeshRequest(dp=2, chip="h200-sxm"), MeshRequest(dp=2, chip="cpu"))
    assert find_cluster(spec(), wanted).nodes[0].devices == ("h200-sxm",) * 2 + ("cpu",) * 2


@pytest.mark.usefixtures("gpus")
def test_further_nodes_are_like_this_one() -> None:
    cluster = find_cluster(spec(Runner(nnodes=2, master_addr="10.0.0.1")), request())
    assert [(node.host, len(node.devices)) for node in cluster.nodes] == [("10.0.0.1", 4), ("node-1", 4)]


def test_chips_that_are_not_here_are_planned_for_where_the_run_will_be() -> None:
    wanted = request(MeshRequest(tp=8, dp=1, chip="a800-sxm-80g"), MeshRequest(tp=8, dp=1, chip="ascend-910b3"))
    cluster = find_cluster(spec(Runner(nnodes=2, nproc_per_node=8)), wanted)
    assert [node.devices[0] for node in cluster.nodes] == ["a800-sxm-80g", "ascend-910b3"]
