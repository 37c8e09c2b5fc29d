"""The command line as a user calls it, with an engine that computes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.toy.job import ROOT

PLUGIN = Path(__file__).with_name("plugin")
EXPERIMENT = """\
defaults:
  - train: toy
  - _self_
experiment:
  exp_name: toy
  exp_dir: {exp_dir}
  task: {{type: train, backend: toy}}
"""


def write_conf(folder: Path, task: str = "model: {train_iters: 5}\n", more: str = "") -> Path:
    """An experiment of the toy engine that runs in ``<folder>/out``; its configuration folder."""
    conf = folder / "conf"
    (conf / "train").mkdir(parents=True)
    (conf / "toy.yaml").write_text(EXPERIMENT.format(exp_dir=folder / "out") + more)
    (conf / "train" / "toy.yaml").write_text(task)
    return conf


def environment(**more: str) -> dict[str, str]:
    """Where the toy engine is found."""
    return {**os.environ, "PYTHONPATH": str(PLUGIN), **more}


def argv(conf: Path | None, *words: str) -> list[str]:
    """A command line."""
    where = ["--config-path", str(conf), "--config-name", "toy"] if conf else []
    return [sys.executable, str(ROOT / "run.py"), *where, *words]


def call(conf: Path | None, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Call it and wait."""
    return subprocess.run(
        argv(conf, *words), env=environment(**env), capture_output=True, text=True, check=False, timeout=120
    )


def start(conf: Path, *words: str, **env: str) -> subprocess.Popen[str]:
    """Call it and go on."""
    return subprocess.Popen(
        argv(conf, *words), env=environment(**env), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
