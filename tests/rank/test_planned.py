"""What is planned runs: an interleaved schedule chosen by the planner, trained on two ranks."""

from __future__ import annotations

import math
from pathlib import Path

import yaml

from flagvega.layout.codec import plan_to_json
from tests.rank.client import Server, decide_on
from tests.unit.plan.asked import TWO_CPUS

TASK = """\
model:
  num_layers: 7
  hidden_size: 64
  num_attention_heads: 4
  seq_length: 32
  max_position_embeddings: 32
  normalization: RMSNorm
  swiglu: true
  disable_bias_linear: true
  untie_embeddings_and_output_weights: true
  global_batch_size: 4
  tensor_model_parallel_size: 1
  pipeline_model_parallel_size: 2
  num_virtual_stages_per_pipeline_rank: 2
  lr: 1e-3
  train_iters: 2
  log_interval: 1
data: {mock_data: true, tokenizer_type: NullTokenizer, vocab_size: 2000}
"""


def test_an_interleaved_plan_of_uneven_chunks_is_found_and_trains(server: Server, tmp_path: Path) -> None:
    blocks = {name: block for name, block in yaml.safe_load(TWO_CPUS).items() if name in ("cluster", "plan")}
    decision = decide_on(tmp_path, {**blocks, "train": yaml.safe_load(TASK)})
    decisions = plan_to_json(decision.plan)["decisions"]
    assert decisions["schedule"] == "interleaved"
    assert [chunk["stage"] for chunk in decisions["chain"]] == [0, 1, 0, 1]
    assert len({chunk["layers"][1] - chunk["layers"][0] for chunk in decisions["chain"]}) > 1
    steps = server.start(decision).rows
    assert [step["step"] for step in steps] == [1, 2]
    assert all(math.isfinite(step["loss"]) for step in steps)
