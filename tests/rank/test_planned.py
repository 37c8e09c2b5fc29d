"""What is planned runs: an interleaved schedule chosen by the planner, trained on two ranks."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT
from tests.unit.plan.asked import COMMAND_LINE, TWO_CPUS, write

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


def test_an_interleaved_plan_of_uneven_chunks_is_found_and_trains(tmp_path: Path) -> None:
    write(tmp_path, TWO_CPUS, TASK)
    command = [sys.executable, str(ROOT / "run.py"), *COMMAND_LINE, "output=json"]
    planned = subprocess.run([*command, "action=plan"], cwd=tmp_path, capture_output=True, text=True, check=True)
    decisions = json.loads(planned.stdout)["plan"]["decisions"]
    assert decisions["schedule"] == "interleaved"
    assert [chunk["stage"] for chunk in decisions["chain"]] == [0, 1, 0, 1]
    assert len({chunk["layers"][1] - chunk["layers"][0] for chunk in decisions["chain"]}) > 1
    subprocess.run([*command, "action=run", "plan=out/plan.json"], cwd=tmp_path, capture_output=True, check=True)
    steps = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2]
    assert all(math.isfinite(step["loss"]) for step in steps)
