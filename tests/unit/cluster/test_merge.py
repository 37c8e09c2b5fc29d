from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from flagvega.cli import main
from tests.unit.plan.asked import ask, write


def env(name: str, chips: list[str], networks: dict[str, float | None], memory_gib: float | None = 64) -> None:
    """A file as ``action=env output=json`` prints it on a host."""
    memory = None if memory_gib is None else round(memory_gib * 2**30)
    devices = [
        {"vendor": "x", "index": i, "chip": chip, "name": chip, "memory_bytes": memory, "driver": ""}
        for i, chip in enumerate(chips)
    ]
    facts: dict[str, Any] = {
        "host": name,
        "devices": devices,
        "networks": [{"name": network, "bits_per_s": rate} for network, rate in networks.items()],
    }
    Path(f"{name}.json").write_text(json.dumps(facts))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_hosts_alike_are_put_together_and_the_rest_keep_their_devices(capsys: pytest.CaptureFixture[str]) -> None:
    env("a", ["a800-sxm-80g"] * 8, {"eth0": 25e9, "mlx5_0/1": 200e9, "mlx5_1/1": 200e9}, 79.37)
    env("b", ["a800-sxm-80g"] * 8, {"eth0": 25e9, "mlx5_0/1": 200e9, "mlx5_1/1": 200e9}, 79.37)
    env("c", ["ascend-910b3"] * 2 + ["emu-s"], {"eth0": 24e9, "lo": None}, None)
    assert main(["action=env", "merge=[a.json, b.json,c.json]"]) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text) == {
        "nodes": [
            {"hosts": ["a", "b"], "chip": "a800-sxm-80g", "devices": 8, "memory_gib": 79.3, "network_gb_s": 6.25},
            {"host": "c", "chip": "ascend-910b3", "devices": 2, "network_gb_s": 1.0},
            {"host": "c", "chip": "emu-s", "devices": 1, "network_gb_s": 1.0},
        ]
    }
    assert "links:" in text


def test_the_merged_file_is_a_cluster_that_a_plan_can_be_made_for(capsys: pytest.CaptureFixture[str]) -> None:
    env("a", ["emu-s", "emu-s"], {"eth0": 8e9}, None)
    env("b", ["emu-l", "emu-l"], {}, None)
    env("c", ["emu-s", "emu-s"], {"eth0": 8e9}, None)
    assert main(["action=env", "merge=a.json,b.json,c.json"]) == 0
    Path("cluster.yaml").write_text(capsys.readouterr().out)
    write(Path())
    keep = "plan.keep=[{chip: emu-s, pp: 4}, {chip: emu-l, pp: 2}]"
    code, answer = ask(capsys, "action=plan", "cluster=cluster.yaml", keep)
    assert code == 0
    plan = answer["plan"]
    assert {mesh["chip"] for mesh in plan["decisions"]["meshes"]} <= {"emu-s", "emu-l"}
    assert any("network of emu-l" in line for line in plan["predictions"]["assumed"])


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("none.json", None, "cannot be read"),
        ("bad.json", "{", "cannot be read"),
        ("other.json", "[1]", "not what action=env output=json prints"),
        ("empty.json", '{"host": "x", "devices": [], "networks": []}', "no devices"),
    ],
)
def test_a_file_that_is_no_hosts_is_named(
    capsys: pytest.CaptureFixture[str], name: str, text: str | None, what: str
) -> None:
    env("a", ["emu-s"], {})
    if text is not None:
        Path(name).write_text(text)
    assert main(["action=env", f"merge=a.json,{name}", "output=json"]) == 2
    [fault] = json.loads(capsys.readouterr().out)["faults"]
    assert what in fault["what"]
    assert fault["where"] == name
    assert fault["fix"]


def test_a_host_given_twice_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    env("a", ["emu-s"], {})
    assert main(["action=env", "merge=a.json,a.json"]) == 2
    assert "comes twice" in capsys.readouterr().err
