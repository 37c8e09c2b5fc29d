"""An experiment to plan, in the files a user writes, and what the command line answers about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flagvega.cli import main

EXPERIMENT = """\
defaults: [{train: small}, _self_]
experiment: {exp_name: small, exp_dir: out}
cluster:
  nodes:
    - {chip: emu-s, devices: 2}
    - {chip: emu-l, devices: 2}
plan: {file: auto, time_s: 3}
"""
TWO_CPUS = """\
defaults: [{train: small}, _self_]
experiment: {exp_name: small, exp_dir: out}
cluster:
  nodes:
    - {chip: cpu, devices: 2, memory_gib: 4, tflops: 0.05, bandwidth_gb_s: 10, link_gb_s: 1}
plan: {file: auto, time_s: 3}
"""
"""Alike chips, for which interleaving may pay."""
TASK = """\
model:
  num_layers: 6
  hidden_size: 128
  num_attention_heads: 4
  seq_length: 64
  max_position_embeddings: 64
  normalization: RMSNorm
  swiglu: true
  disable_bias_linear: true
  untie_embeddings_and_output_weights: true
  global_batch_size: 8
  lr: 1e-3
  train_iters: 4
data: {mock_data: true, tokenizer_type: NullTokenizer, vocab_size: 500}
"""
COMMAND_LINE = ["--config-path", "conf", "--config-name", "exp"]
"""What names the experiment from its folder."""


def write(folder: Path, experiment: str = EXPERIMENT, task: str = TASK) -> None:
    """Its files."""
    (folder / "conf/train").mkdir(parents=True, exist_ok=True)
    (folder / "conf/exp.yaml").write_text(experiment)
    (folder / "conf/train/small.yaml").write_text(task)


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    """Exit code and answer."""
    code = main([*COMMAND_LINE, "output=json", *words])
    return code, json.loads(capsys.readouterr().out)
