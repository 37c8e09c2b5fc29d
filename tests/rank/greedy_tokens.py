"""Greedy tokens of a served model against those of the model that was trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from backends.megatron.convert import Question, convert
from flagvega.records import read_json
from tests.conftest import ROOT
from tests.rank.gate import Gate
from tests.rank.served import Served

PROMPTS, PROMPT_LENGTH, LENGTH = 20, 8, 20
CLOSE = 1e-4
"""Two logits closer than this may change places."""


def train_and_convert(gate: Gate, line: str, root: Path) -> Path:
    """Train for three steps; the folder of the converted model."""
    gate.run(line, root, exit_interval=3)
    arguments = read_json(root / "job" / "rank.json")["arguments"]
    (root / "arguments.json").write_text(json.dumps(arguments))
    convert(Question(arguments, str(root / "checkpoints"), str(root / "huggingface"), "fp32"), lambda share: None)
    return root / "huggingface"


def check_greedy_tokens(run: Path, served: Served, model: str) -> None:
    """Answers to prompts, all at once, are those of the run's own model, up to the first that is hardly decided."""
    prompts = np.random.default_rng(7).integers(0, 256, (PROMPTS, PROMPT_LENGTH))
    np.save(run / "prompts.npy", prompts)
    program = [sys.executable, "-m", "tests.rank.greedy", str(run), str(LENGTH)]
    done = subprocess.run(program, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected, gaps = np.load(run / "tokens.npy"), np.load(run / "gaps.npy")

    def tokens(prompt: list[int]) -> list[int]:
        answer = served.ask(model, prompt=prompt, max_tokens=LENGTH, ignore_eos=True, return_token_ids=True)
        found: list[int] = answer["choices"][0]["token_ids"]
        return found

    with ThreadPoolExecutor(PROMPTS) as pool:
        answers = list(pool.map(tokens, prompts.tolist()))
    compared = 0
    for answer, ours, gap in zip(answers, expected.tolist(), gaps, strict=True):
        clear = next((i for i, each in enumerate(gap) if each < CLOSE), LENGTH)
        assert answer[:clear] == ours[:clear]
        compared += clear
    assert compared > PROMPTS * LENGTH / 2
