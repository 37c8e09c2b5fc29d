"""Interleaved schedules as a user asks for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.plan.asked import TWO_CPUS, ask

EXPERIMENT = TWO_CPUS
TASK = """\
model:
  num_layers: 8
  hidden_size: 256
  num_attention_heads: 4
  seq_length: 128
  max_position_embeddings: 128
  normalization: RMSNorm
  swiglu: true
  disable_bias_linear: true
  untie_embeddings_and_output_weights: true
  global_batch_size: 8
  micro_batch_size: 1
  tensor_model_parallel_size: 1
  pipeline_model_parallel_size: 2
  lr: 1e-3
  train_iters: 4
data: {mock_data: true, tokenizer_type: NullTokenizer, vocab_size: 500}
"""
VIRTUAL = "train.model.num_virtual_stages_per_pipeline_rank"
PER_CHUNK = "train.model.num_layers_per_virtual_pipeline_stage"
pytestmark = pytest.mark.usefixtures("conf")


def test_an_interleaved_schedule_is_chosen_where_it_is_faster(capsys: pytest.CaptureFixture[str]) -> None:
    code, best = ask(capsys, "action=plan")
    assert code == 0
    assert best["plan"]["decisions"]["schedule"] == "interleaved"
    _, plain = ask(capsys, "action=plan", f"{VIRTUAL}=1")
    assert plain["plan"]["decisions"]["schedule"] == "1f1b"
    assert best["plan"]["predictions"]["iteration_s"] < plain["plan"]["predictions"]["iteration_s"]


def test_virtual_stages_in_the_yaml_are_pins(capsys: pytest.CaptureFixture[str]) -> None:
    _, two = ask(capsys, "action=plan", f"{VIRTUAL}=2")
    assert len(two["plan"]["decisions"]["chain"]) == 4
    _, each = ask(capsys, "action=plan", f"{PER_CHUNK}=1", "~train.model.pipeline_model_parallel_size")
    assert [chunk["layers"][1] - chunk["layers"][0] for chunk in each["plan"]["decisions"]["chain"]] == [1] * 8


def test_an_estimate_of_the_plan_says_what_the_plan_says(capsys: pytest.CaptureFixture[str]) -> None:
    _, planned = ask(capsys, "action=plan", f"{VIRTUAL}=2")
    code, estimated = ask(capsys, "action=estimate", "plan=out/plan.json", f"{VIRTUAL}=2")
    assert code == 0
    wanted, found = planned["plan"]["predictions"], estimated["plan"]["predictions"]
    assert found["iteration_s"] == pytest.approx(wanted["iteration_s"])
    assert found["stages"] == wanted["stages"]
    assert len(found["stages"][0]["chunks"]) == 2


def test_more_virtual_stages_than_layers_end_with_the_pin_to_drop(capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = ask(capsys, "action=plan", f"{VIRTUAL}=7")
    assert code == 3
    assert "without virtual stages" in json.dumps(answer)


def test_the_pictures_show_the_way_back_to_the_first_stage(capsys: pytest.CaptureFixture[str]) -> None:
    ask(capsys, "action=plan", f"{VIRTUAL}=2")
    assert "stage 1 to 0" in Path("out/report/plan.html").read_text()
    events = json.loads(Path("out/report/plan.trace.json").read_text())["traceEvents"]
    names = [event["args"]["name"] for event in events if event["name"] == "thread_name"]
    assert names == ["stage 0", "stage 0 to 1", "stage 1 to 0", "stage 1", "stage 1 to 0", "stage 0 to 1"]
