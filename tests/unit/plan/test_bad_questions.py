"""Clusters, models and pins that cannot be: each is answered with what is wrong, where, and what to write."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.unit.plan import asked

EXPERIMENT = """\
defaults: [{train: small}, _self_]
experiment: {exp_name: small, exp_dir: out}
cluster: machines.yaml
plan:
  time_s: 2
"""
MACHINES = """\
nodes:
  - {host: a, chip: emu-s, devices: 2, network_gb_s: 1}
  - {host: b, chip: emu-l, devices: 2, network_gb_s: 1}
links:
  - {between: [emu-s, emu-l], gb_s: 1}
"""
TASK = f"system:\n  tensor_model_parallel_size: 1\n{asked.TASK}"
pytestmark = pytest.mark.usefixtures("conf")


@dataclass(frozen=True)
class Mistake:
    name: str
    what: str
    """A pattern of what is said."""
    fix: str
    """A pattern of the way out."""
    where: str
    """What the place is."""
    machines: tuple[str, str] = ("", "")
    """(text, what is written instead) in the cluster file."""
    task: tuple[str, str] = ("", "")
    plan: str = ""
    """Lines added to the plan block."""


FIRST = "- {host: a, chip: emu-s, devices: 2"
MISTAKES = [
    Mistake(
        "a chip with no memory figure",
        "no memory size is known of cpu",
        "write memory_gib beside 'chip: cpu'",
        "machines.yaml:2 nodes[0].chip",
        machines=("chip: emu-s", "chip: cpu, tflops: 1, bandwidth_gb_s: 10"),
    ),
    Mistake(
        "a chip with no peak rate",
        "no peak rate in fp32 is known of cpu",
        "write tflops beside 'chip: cpu'",
        "machines.yaml:2 nodes[0].chip",
        machines=("chip: emu-s", "chip: cpu, memory_gib: 8, bandwidth_gb_s: 10"),
    ),
    Mistake(
        "memory of zero",
        "memory_gib of emu-s is 0",
        "above 0, or leave it out",
        "machines.yaml:2 nodes[0].memory_gib",
        machines=(FIRST, f"{FIRST}, memory_gib: 0"),
    ),
    Mistake(
        "a network of zero",
        "network_gb_s of emu-s is 0",
        "above 0",
        "machines.yaml:2 nodes[0].network_gb_s",
        machines=("network_gb_s: 1}\n  - {host: b", "network_gb_s: 0}\n  - {host: b"),
    ),
    Mistake(
        "a price below zero",
        "price_per_hour of emu-s is -1",
        "0 or more",
        "machines.yaml:2 nodes[0].price_per_hour",
        machines=(FIRST, f"{FIRST}, price_per_hour: -1"),
    ),
    Mistake(
        "a bandwidth of zero",
        "gb_s is 0",
        "above 0",
        "machines.yaml:5 links[0].gb_s",
        machines=("emu-l], gb_s: 1", "emu-l], gb_s: 0"),
    ),
    Mistake(
        "a start-up below zero",
        "latency_us is -1",
        "0 or more",
        "machines.yaml:5 links[0].latency_us",
        machines=("emu-l], gb_s: 1", "emu-l], gb_s: 1, latency_us: -1"),
    ),
    Mistake(
        "a link to itself",
        "two kinds of chips, not emu-s and emu-s",
        "network_gb_s",
        "machines.yaml:5 links[0].between",
        machines=("[emu-s, emu-l]", "[emu-s, emu-s]"),
    ),
    Mistake(
        "a link to a chip that is not there",
        "there is no a800-sxm-80g in the cluster",
        "emu-l, emu-s",
        "machines.yaml:5 links[0].between",
        machines=("[emu-s, emu-l]", "[emu-s, A800]"),
    ),
    Mistake(
        "a chip misspelt in a link",
        "unknown chip 'emu-ll'",
        "emu-l",
        "machines.yaml:5 links[0].between",
        machines=("[emu-s, emu-l]", "[emu-s, emu-ll]"),
    ),
    Mistake(
        "a chip misspelt",
        "unknown chip 'emu-ss'",
        "did you mean emu-s",
        "machines.yaml:2 nodes[0].chip",
        machines=("chip: emu-s", "chip: emu-ss"),
    ),
    Mistake(
        "a key misspelt",
        "unknown key 'netwrk_gb_s'",
        "'network_gb_s'",
        "machines.yaml:2 nodes[0].netwrk_gb_s",
        machines=("devices: 2, network_gb_s: 1}\n  - {host: b", "devices: 2, netwrk_gb_s: 1}\n  - {host: b"),
    ),
    Mistake(
        "hosts named twice over",
        "'host' and 'count' say it twice",
        "'hosts' alone",
        "machines.yaml:2 nodes[0].hosts",
        machines=("{host: a,", "{host: a, hosts: [c, d],"),
    ),
    Mistake(
        "more stages than layers",
        "20 stages are more than 6 layers",
        "at most 8",
        "conf/train/small.yaml:2 train.system.pipeline_model_parallel_size",
        task=("tensor_model_parallel_size: 1", "pipeline_model_parallel_size: 20"),
    ),
    Mistake(
        "more stages than devices",
        "6 stages need as many devices; there are 4",
        "at most 4",
        "conf/train/small.yaml:2 train.system.pipeline_model_parallel_size",
        task=("tensor_model_parallel_size: 1", "pipeline_model_parallel_size: 6"),
    ),
    Mistake(
        "more stages than devices with the degrees that are given",
        r"3 stages do not fit on these devices: there is room for 2 \(1 on emu-s, 1 on emu-l\)",
        r"at most 2, or change tensor_model_parallel_size \(conf/train/small.yaml:2 ",
        "conf/train/small.yaml:3 train.system.pipeline_model_parallel_size",
        task=(
            "tensor_model_parallel_size: 1",
            "tensor_model_parallel_size: 2\n  pipeline_model_parallel_size: 3",
        ),
    ),
    Mistake(
        "more stages than devices beside a kept mesh",
        r"4 stages do not fit on these devices: there is room for 3 \(1 on emu-s, 2 on emu-l\)",
        r"at most 3, or change plan.keep \(conf/exp.yaml:6 plan.keep\)",
        "conf/train/small.yaml:2 train.system.pipeline_model_parallel_size",
        task=("tensor_model_parallel_size: 1", "pipeline_model_parallel_size: 4"),
        plan="keep: [{chip: emu-s}]",
    ),
    Mistake(
        "tensor parallelism wider than a host",
        "none has more than 2 devices",
        "at most 2",
        "conf/train/small.yaml:2 train.system.tensor_model_parallel_size",
        task=("tensor_model_parallel_size: 1", "tensor_model_parallel_size: 4"),
    ),
    Mistake(
        "a batch that no dp divides",
        "global_batch_size 8 is no multiple of micro_batch_size 3",
        "9 would fit",
        "conf/train/small.yaml:14 train.model.global_batch_size",
        task=("  num_layers: 6\n", "  micro_batch_size: 3\n  num_layers: 6\n"),
    ),
    Mistake(
        "a host that there is not",
        "no host 'bb' in the cluster",
        "did you mean 'b'",
        "conf/exp.yaml:6 plan.nodes[0]",
        plan="nodes: [bb]",
    ),
    Mistake(
        "an order without a chip",
        "the order does not have emu-l",
        "plan.nodes",
        "conf/exp.yaml:6 plan.order",
        plan="order: [emu-s]",
    ),
    Mistake(
        "an order with a chip twice",
        "emu-s comes twice",
        "neighbours",
        "conf/exp.yaml:6 plan.order[1]",
        plan="order: [emu-s, emu-s, emu-l]",
    ),
    Mistake(
        "an order with a chip that is not there",
        "there is no emu-m",
        "emu-s, emu-l",
        "conf/exp.yaml:6 plan.order[0]",
        plan="order: [emu-m, emu-s, emu-l]",
    ),
    Mistake(
        "the cheapest plan without prices",
        "emu-s has none",
        "price_per_hour",
        "conf/exp.yaml:6 plan.objective",
        plan="objective: cost",
    ),
    Mistake(
        "an objective of services",
        "goodput is of services",
        "time, cost",
        "conf/exp.yaml:6 plan.objective",
        plan="objective: goodput",
    ),
    Mistake(
        "an objective that there is not",
        "'tiem' is not possible",
        "'time'",
        "conf/exp.yaml:6 plan.objective",
        plan="objective: tiem",
    ),
    Mistake(
        "a key of the plan misspelt",
        "unknown key 'max_ttp'",
        "'max_tp'",
        "conf/exp.yaml:6 plan.max_ttp",
        plan="max_ttp: 2",
    ),
    Mistake(
        "a kept mesh with too many devices",
        r"= 3 devices; there are 2",
        "lower",
        r"conf/exp.yaml:6 plan.keep[0]",
        plan="keep: [{chip: emu-s, pp: 3}]",
    ),
    Mistake(
        "a kept mesh whose dp divides no batch",
        "dp 3 of the kept mesh of emu-s does not divide the global batch of 8",
        "dp 2 or 4",
        "conf/exp.yaml:6 plan.keep",
        machines=(FIRST, FIRST.replace("2", "4")),
        plan="keep: [{chip: emu-s, dp: 3}]",
    ),
    Mistake(
        "a kept mesh against a limit",
        "has tp 2, and plan.max_tp is 1",
        "one of the two",
        "conf/exp.yaml:7 plan.keep[0]",
        plan="max_tp: 1\n  keep: [{chip: emu-s, tp: 2}]",
        task=("  tensor_model_parallel_size: 1\n", "  bf16: false\n"),
    ),
    Mistake(
        "a kept mesh against a pin",
        "tp 2, but tp 1 is given under train",
        "one of the two",
        "conf/exp.yaml:6 plan.keep[0]",
        plan="keep: [{chip: emu-s, tp: 2}]",
    ),
    Mistake(
        "a kept mesh that the engine cannot run",
        "is not legal: .*num_attention_heads",
        "degrees",
        "conf/exp.yaml:6 plan.keep[0]",
        plan="keep: [{chip: emu-s, tp: 8}]",
        machines=(FIRST, FIRST.replace("2", "8")),
        task=("  tensor_model_parallel_size: 1\n", "  bf16: false\n"),
    ),
    Mistake(
        "a kept mesh of nothing",
        "neither a chip nor a plan",
        "write chip and degrees",
        "conf/exp.yaml:6 plan.keep[0]",
        plan="keep: [{tp: 2}]",
    ),
    Mistake(
        "a kept mesh of a plan that is not there",
        "cannot be read",
        "",
        "conf/exp.yaml:6 plan.keep[0].plan",
        plan="keep: {plan: nowhere.json}",
    ),
]


def ask(capsys: pytest.CaptureFixture[str], mistake: Mistake) -> tuple[int, dict[str, Any]]:
    """For a plan, with the mistake made."""
    texts = []
    for text, (old, new) in ((MACHINES, mistake.machines), (TASK, mistake.task)):
        assert old in text
        texts.append(text.replace(old, new, 1) if old else text)
    Path("machines.yaml").write_text(texts[0])
    asked.write(Path(), EXPERIMENT + (f"  {mistake.plan}\n" if mistake.plan else ""), texts[1])
    return asked.ask(capsys, "action=plan")


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name.replace(" ", "-"))
def test_what_cannot_be_is_answered_with_its_place_and_the_fix(
    capsys: pytest.CaptureFixture[str], mistake: Mistake
) -> None:
    code, answer = ask(capsys, mistake)
    assert code == 2
    fault = next((fault for fault in answer["faults"] if re.search(mistake.what, fault["what"])), None)
    assert fault is not None, answer["faults"]
    assert re.search(mistake.fix, fault["fix"]), fault
    assert fault["where"] == mistake.where


def test_all_that_is_wrong_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    mistake = Mistake("", "", "", "", plan="nodes: [a, b]\n  order: [emu-s]\n  keep: [{chip: emu-l, pp: 9}]",
                      task=("tensor_model_parallel_size: 1", "pipeline_model_parallel_size: 20"))  # fmt: skip
    code, answer = ask(capsys, mistake)
    assert code == 2
    assert {fault["where"] for fault in answer["faults"]} == {
        "conf/exp.yaml:7 plan.order",
        "conf/exp.yaml:8 plan.keep[0]",
        "conf/train/small.yaml:2 train.system.pipeline_model_parallel_size",
    }


def test_a_link_that_nobody_tells_is_assumed_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    mistake = Mistake("", "", "", "", machines=("network_gb_s: 1}\n  - {host: b", "link_gb_s: 9}\n  - {host: b"))
    code, answer = ask(capsys, mistake)
    assert code == 0
    assert any("write network_gb_s" in line for line in answer["plan"]["predictions"]["assumed"])
