"""Searches of the toy engine, whose trials take less than a second."""

from __future__ import annotations

import json
from pathlib import Path

from tests.toy.cli import PLUGIN, write_conf

QUICK = Path(__file__).with_name("quick")
PYTHONPATH = f"{PLUGIN}:{QUICK}"
"""Where the toy engine is found, and a torchrun that starts at once."""


def write_search(folder: Path, space: str, control: str = "", algo: str = "guided") -> Path:
    """An experiment that is tuned; its configuration folder."""
    conf = write_conf(folder, "model: {train_iters: 200}\n")
    text = (conf / "toy.yaml").read_text() + (
        f"  auto_tuner:\n    space: {space}\n    algo: {{name: {algo}}}\n"
        f"    control: {{warmup_iters: 1, train_iters: 2, max_iters: 2, run_best: false, {control}}}\n"
    )
    (conf / "toy.yaml").write_text(text)
    return conf


def read_trials(folder: Path) -> list[dict]:
    """The records of a search."""
    path = folder / "out" / "auto_tuner" / "trials.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
