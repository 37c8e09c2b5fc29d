"""What the ``plan`` block pins is kept by the plan that comes out."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.plan.asked import ask

pytestmark = pytest.mark.usefixtures("conf")
NODES = "cluster.nodes=[{host: a, chip: emu-s, devices: 2}, {host: b, chip: emu-l, devices: 2}]"


def chips_in_order(answer: dict[str, Any]) -> list[str]:
    decisions = answer["plan"]["decisions"]
    chips = [decisions["meshes"][stage["replicas"][0]["mesh"]]["chip"] for stage in decisions["stages"]]
    return list(dict.fromkeys(chips))


def test_no_more_tensor_parallelism_is_chosen_than_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = ask(capsys, "action=plan", "plan.max_tp=1")
    assert code == 0
    assert {mesh["tp"] for mesh in answer["plan"]["decisions"]["meshes"]} == {1}


@pytest.mark.parametrize("order", [("emu-s", "emu-l"), ("emu-l", "emu-s")])
def test_chips_come_in_the_order_that_is_asked_for(capsys: pytest.CaptureFixture[str], order: tuple[str, str]) -> None:
    keep = "plan.keep=[{chip: emu-s, dp: 2}, {chip: emu-l, dp: 2}]"
    code, answer = ask(capsys, "action=plan", NODES, f"plan.order=[{', '.join(order)}]", keep)
    assert code == 0
    assert chips_in_order(answer) == list(order)
    assert [mesh["dp"] for mesh in answer["plan"]["decisions"]["meshes"]] == [2, 2]


def test_only_the_hosts_that_are_named_are_used(capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = ask(capsys, "action=plan", NODES, "plan.nodes=[b]")
    assert code == 0
    devices = [device for mesh in answer["plan"]["decisions"]["meshes"] for device in mesh["devices"]]
    assert {node for node, _ in devices} == {1}
    assert answer["unused"].keys() <= {"emu-l"}


def test_the_mesh_of_another_plan_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    first = ["plan.keep=[{chip: emu-s, pp: 2}]", "experiment.exp_dir=first"]
    code, _ = ask(capsys, "action=plan", NODES, *first)
    assert code == 0
    code, answer = ask(capsys, "action=plan", NODES, "plan.keep={plan: first/plan.json, chip: emu-s}")
    assert code == 0
    [mesh] = [mesh for mesh in answer["plan"]["decisions"]["meshes"] if mesh["chip"] == "emu-s"]
    assert (mesh["tp"], mesh["dp"], len(mesh["devices"])) == (1, 1, 2)


def test_a_pin_that_leaves_no_plan_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = "cluster.nodes=[{chip: emu-s, devices: 4, memory_gib: 0.012}]"
    code, answer = ask(capsys, "action=plan", nodes, "plan.keep=[{chip: emu-s}]")
    assert code == 3
    [fault] = answer["faults"]
    assert "GiB too much" in fault["what"]
    assert "without plan.keep given there is a plan" in fault["fix"]


def test_a_cluster_that_is_too_small_is_told_how_many_hosts_more_would_do(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = "cluster.nodes=[{host: a, chip: emu-s, memory_gib: 0.012, network_gb_s: 1}]"
    code, answer = ask(capsys, "action=plan", nodes)
    assert code == 3
    assert "1 more host with 1 x emu-s" in answer["faults"][0]["fix"]


def test_the_cheapest_plan_leaves_out_what_costs_more_than_it_saves(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = (
        "cluster.nodes=[{host: a, chip: emu-l, devices: 2, price_per_hour: 1},"
        " {host: b, chip: emu-s, devices: 2, price_per_hour: 100}]"
    )
    code, fast = ask(capsys, "action=plan", nodes)
    assert code == 0
    code, cheap = ask(capsys, "action=plan", nodes, "plan.objective=cost")
    assert code == 0
    assert cheap["price"] <= fast["price"]
    assert {mesh["chip"] for mesh in cheap["plan"]["decisions"]["meshes"]} == {"emu-l"}
    seconds, price = cheap["plan"]["predictions"]["iteration_s"], cheap["plan"]["predictions"]["price_per_hour"]
    assert cheap["price"] == pytest.approx(seconds * price / 3600)


def test_pins_beside_a_layout_that_is_given_are_said_to_be_idle(capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = ask(capsys, "action=plan", NODES)
    assert code == 0
    given = ["plan.file=out/plan.json", NODES, "action=dryrun", "construct=false"]
    code, answer = ask(capsys, *given, "plan.nodes=[b]", "plan.max_tp=1")
    assert code == 0
    assert [line.split(": the layout")[0] for line in answer["warnings"]] == [
        "command line: plan.max_tp",
        "command line: plan.nodes",
    ]
    code, answer = ask(capsys, *given)
    assert answer["warnings"] == []


def test_the_best_other_shapes_are_told_with_what_keeps_them_slower(capsys: pytest.CaptureFixture[str]) -> None:
    _, answer = ask(capsys, "action=plan", "plan.top_k=3")
    shapes = answer["shapes"]
    assert 1 <= len(shapes) <= 2
    assert all(shape["iteration_s"] >= answer["plan"]["predictions"]["iteration_s"] for shape in shapes)
    assert all(shape["why"] for shape in shapes)
    assert len({shape["name"] for shape in shapes}) == len(shapes)
