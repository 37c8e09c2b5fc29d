"""Plans by measured costs, as a user asks for them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flagvega.model.shape import ModelShape
from flagvega.model.workload import Workload
from flagvega.plan.profile import KINDS, LayerRow, Profile, validity_of
from flagvega.plan.tables import profile_to_csv, profile_to_json
from tests.unit.plan.asked import ask

EXPERIMENT = """\
defaults: [{train: small}, _self_]
experiment: {exp_name: small, exp_dir: out}
cluster: {nodes: [{chip: emu-s, devices: 1}, {chip: emu-l, devices: 1}]}
plan: {file: auto, time_s: 3}
"""
TASK = """\
model: {num_layers: 6, hidden_size: 128, num_attention_heads: 4, seq_length: 64, max_position_embeddings: 64,
  normalization: RMSNorm, position_embedding_type: rope, swiglu: true, disable_bias_linear: true,
  untie_embeddings_and_output_weights: true,
  global_batch_size: 8, lr: 1e-3, train_iters: 4}
data: {mock_data: true, tokenizer_type: NullTokenizer, vocab_size: 500}
"""
SHAPE = ModelShape(6, 128, 4, 4, 32, 320, 512)
WORK = Workload(SHAPE, 64, "fp32", 8, 8, 4, 8)
pytestmark = pytest.mark.usefixtures("conf")


def measured(seconds: dict[str, float]) -> Profile:
    """Chips whose every part takes so long for a sample."""
    rows = [
        LayerRow(chip, 1, size, its * size, 2 * its * size, kind)
        for chip, its in seconds.items()
        for size in (1, 2, 4, 8)
        for kind in KINDS
        if kind != "experts"
    ]
    return Profile(tuple(rows), valid=validity_of(WORK, "a test"))


def layers_of(answer: dict[str, Any]) -> dict[str, int]:
    """Decoder layers by chip."""
    decisions = answer["plan"]["decisions"]
    chips = {mesh["id"]: mesh["chip"] for mesh in decisions["meshes"]}
    found: dict[str, int] = {}
    for chunk in decisions["chain"]:
        chip = chips[decisions["stages"][chunk["stage"]]["replicas"][0]["mesh"]]
        found[chip] = found.get(chip, 0) + chunk["layers"][1] - chunk["layers"][0]
    return found


def test_measurements_decide_and_not_the_data_sheet(capsys: pytest.CaptureFixture[str]) -> None:
    Path("upside-down.csv").write_text(profile_to_csv(measured({"emu-s": 0.01, "emu-l": 0.05})))
    code, answer = ask(capsys, "action=plan", "plan.profile=upside-down.csv")
    assert code == 0
    assert layers_of(answer)["emu-s"] > layers_of(answer).get("emu-l", 0)
    assert answer["plan"]["predictions"]["source"].startswith("measurements (upside-down.csv")


def test_a_profile_in_the_folder_of_the_run_is_used_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    Path("out/profile.json").write_text(json.dumps(profile_to_json(measured({"emu-s": 0.01, "emu-l": 0.01}))))
    _, answer = ask(capsys, "action=plan")
    assert answer["plan"]["predictions"]["source"].endswith("out/profile.json: a test)")
    assert any("optimizer" in what for what in answer["plan"]["predictions"]["assumed"])
    hand = ["plan.file=null", "train.system={pipeline_model_parallel_size: 1}", "train.model.micro_batch_size=4"]
    code, answer = ask(capsys, "action=estimate", "cluster.nodes=[{chip: emu-s, devices: 1}]", *hand)
    assert code == 0
    assert answer["plan"]["predictions"]["stages"][0]["forward_s"] == pytest.approx(0.01 * 4 * 8)


def test_a_profile_of_another_model_is_refused_by_name_and_passed_over_in_the_folder(
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = measured({"emu-s": 0.01})
    other = replace(other, valid=validity_of(replace(WORK, seq=128)))
    Path("out").mkdir()
    Path("out/profile.json").write_text(json.dumps(profile_to_json(other)))
    code, answer = ask(capsys, "action=plan", "plan.profile=out/profile.json")
    assert code == 2
    assert "128 tokens" in answer["faults"][0]["what"]
    code, answer = ask(capsys, "action=plan")
    assert code == 0
    assert any("out/profile.json was not used" in what for what in answer["plan"]["predictions"]["assumed"])
