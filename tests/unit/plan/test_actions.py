"""Planning as a user asks for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.plan.asked import ask

pytestmark = pytest.mark.usefixtures("conf")


def test_a_plan_is_written_with_its_predictions_and_runs_as_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = ask(capsys, "action=plan")
    assert code == 0
    written = json.loads(Path("out/plan.json").read_text())
    assert written == answer["plan"]
    assert written["predictions"]["gap"] == 0
    assert len(written["predictions"]["stages"]) == len(written["decisions"]["stages"])
    code, run = ask(capsys, "action=dryrun", "construct=false", "plan=out/plan.json")
    assert code == 0
    assert run["plan"]["decisions"] == written["decisions"]


def test_plan_auto_gives_a_run_the_planned_layout(capsys: pytest.CaptureFixture[str]) -> None:
    _, answer = ask(capsys, "action=plan")
    code, run = ask(capsys, "action=dryrun", "construct=false")
    assert code == 0
    assert run["plan"]["decisions"] == answer["plan"]["decisions"]
    ranks = sum(len(command["ranks"]) for command in run["commands"])
    assert ranks == sum(len(mesh["devices"]) for mesh in run["plan"]["decisions"]["meshes"])


def test_a_plan_is_at_least_as_fast_as_what_it_is_compared_with(capsys: pytest.CaptureFixture[str]) -> None:
    _, answer = ask(capsys, "action=plan")
    others = [other["iteration_s"] for other in answer["compared"] if other["iteration_s"] is not None]
    assert others
    assert min(others) >= answer["plan"]["predictions"]["iteration_s"] - 1e-12


def test_a_plan_that_is_not_there_is_a_fault_of_its_key(capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = ask(capsys, "action=dryrun", "plan.file=nowhere.json")
    assert code == 2
    [fault] = answer["faults"]
    assert fault["where"] == "command line: plan.file"
    assert "nowhere.json" in fault["what"]
    assert "action=plan" in fault["fix"]


def test_degrees_in_the_yaml_are_pins(capsys: pytest.CaptureFixture[str]) -> None:
    pins = ["train.system={tensor_model_parallel_size: 2, pipeline_model_parallel_size: 2}"]
    code, answer = ask(capsys, "action=plan", *pins, "train.model.micro_batch_size=2")
    assert code == 0
    decisions = answer["plan"]["decisions"]
    assert {mesh["tp"] for mesh in decisions["meshes"]} == {2}
    assert len(decisions["stages"]) == 2
    assert decisions["stages"][0]["replicas"][0]["micro_batch_size"] == 2


def test_a_layout_by_hand_beside_plan_auto_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = ask(capsys, "action=plan", "train.model.hetero_pipeline_layer_split=[3, 3]")
    assert code == 2
    assert "hetero_pipeline_layer_split" in answer["faults"][0]["what"]


def test_a_model_that_does_not_fit_ends_with_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = ask(capsys, "action=plan", "cluster.nodes=[{chip: emu-s, devices: 2, memory_gib: 0.01}]")
    assert code == 3
    assert "GiB too much" in answer["faults"][0]["what"]
    assert "memory" in answer["faults"][0]["fix"]


def test_the_layout_in_the_yaml_is_predicted_without_a_search(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan.file=null", "train.system={pipeline_model_parallel_size: 2}", "train.model.micro_batch_size=1"]
    code, answer = ask(capsys, "action=estimate", "cluster.nodes=[{chip: emu-l, devices: 2}]", *words)
    assert code == 0
    stages = answer["plan"]["predictions"]["stages"]
    assert len(stages) == 2
    assert all(stage["forward_s"] > 0 for stage in stages)
    assert answer["too_large"] == []


@pytest.mark.parametrize(
    ("nodes", "what", "fix"),
    [
        ("[{chip: cpu, devices: 2}]", "no peak rate in fp32", "tflops"),
        ("[{chip: emu-s, devices: 2, link_gb_s: 0}]", "link_gb_s of emu-s is 0", "above 0"),
        ("[{chip: emu-ss, devices: 2}]", "unknown chip 'emu-ss'", "emu-s"),
    ],
)
def test_a_bad_cluster_is_told_what_to_write(
    capsys: pytest.CaptureFixture[str], nodes: str, what: str, fix: str
) -> None:
    code, answer = ask(capsys, "action=plan", f"cluster.nodes={nodes}")
    assert code == 2
    assert any(what in fault["what"] and fix in fault["fix"] for fault in answer["faults"])


def test_a_cluster_file_stands_in_for_the_block(capsys: pytest.CaptureFixture[str]) -> None:
    Path("machines.yaml").write_text("nodes:\n  - {chip: emu-l, devices: 2, network_gb_s: 1}\n")
    code, answer = ask(capsys, "action=plan", "cluster=machines.yaml")
    assert code == 0
    assert {mesh["chip"] for mesh in answer["plan"]["decisions"]["meshes"]} == {"emu-l"}
    Path("machines.yaml").write_text("nodes:\n  - {chip: emu-l, device: 2}\n")
    code, answer = ask(capsys, "action=plan", "cluster=machines.yaml")
    assert code == 2
    assert answer["faults"][0]["where"].startswith("machines.yaml:2")


def test_hosts_of_one_run_are_not_left_to_plan_each_for_itself(capsys: pytest.CaptureFixture[str]) -> None:
    hosts = "cluster.nodes=[{host: a, chip: emu-s}, {host: b, chip: emu-l}]"
    code, answer = ask(capsys, "action=run", hosts)
    assert code == 2
    [fault] = answer["faults"]
    assert "each choose a plan" in fault["what"]
    assert fault["where"] == "conf/exp.yaml:7 plan.file"
    assert f"plan={Path('out/plan.json').absolute()}" in fault["fix"]
    assert not Path("out").exists()
    code, _ = ask(capsys, "action=dryrun", "construct=false", hosts)
    assert code == 0


def test_the_plan_says_what_a_change_to_the_cluster_would_gain(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = "[{host: a, chip: emu-s, devices: 2, network_gb_s: 0.001}, {host: b, chip: emu-l, network_gb_s: 0.001}]"
    code, answer = ask(capsys, "action=plan", f"cluster.nodes={nodes}")
    assert code == 0
    gains = [change["gain"] for change in answer["changes"]]
    assert gains == sorted(gains, reverse=True)
    assert gains[0] > 0.005
    advice = f"what would gain most: {answer['changes'][0]['change']}, at least"
    assert advice in Path("out/report/plan.html").read_text()


def test_a_hostfile_of_chips_that_are_not_here_is_completed_from_their_data_sheets(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("hosts").write_text("a slots=2 type=A800  # as FlagScale writes it\nb slots=2 type=910B3\n")
    words = ["~cluster", "experiment.runner.hostfile=hosts", "+train.system={precision: {bf16: true}}"]
    code, answer = ask(capsys, "action=plan", *words)
    assert code == 0
    used = {mesh["chip"] for mesh in answer["plan"]["decisions"]["meshes"]}
    assert used | set(answer["unused"]) == {"a800-sxm-80g", "ascend-910b3"}
    assumed = answer["plan"]["predictions"]["assumed"]
    assert [line.split(":")[0] for line in assumed if "write network_gb_s" in line] == [
        "network of a800-sxm-80g",
        "network of ascend-910b3",
    ]
    Path("hosts").write_text("a slots=2 type=910B1\n")
    code, answer = ask(capsys, "action=plan", *words)
    assert code == 2
    [fault] = answer["faults"]
    assert "no peak rate in bf16 is known of ascend-910b1" in fault["what"]
    assert "cluster: {nodes: [{host: ..., chip: ascend-910b1" in fault["fix"]
