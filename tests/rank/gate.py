"""The equality gate: a layout's losses and gradient norms against those of one process."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from tests.rank.client import TIMEOUT_S, Outcome, Server
from tests.rank.layouts import read_layout

TOLERANCE = 1e-5
"""Relative, of loss and gradient norm, in fp32."""

Curve = list[tuple[float | None, ...]]
"""(loss, gradient norm) of each step, and the loss of validation where there was one. A skipped step has no norm."""


@dataclass
class Gate:
    """Runs layouts by their lines; one-process runs are kept, since many layouts share them."""

    server: Server
    root: Path
    curves: dict[str, Curve] = field(default_factory=dict)
    _numbers: Any = field(default_factory=itertools.count)

    def deviation(self, line: str, mutation: str = "") -> float:
        """The largest relative difference from the one-process run."""
        reference = self.reference(line)
        return deviation(curve(self.run(line, mutation=mutation)), reference)

    def reference(self, line: str) -> Curve:
        """The curve of the one-process run that computes what the layout computes."""
        alone = read_layout(line).reference
        if alone not in self.curves:
            self.curves[alone] = curve(self.run(alone))
        return self.curves[alone]

    def run(self, line: str, directory: Path | None = None, mutation: str = "", code: int = 0,
            stop: int = 0, timeout_s: float = TIMEOUT_S, **arguments: Any) -> Outcome:  # fmt: skip
        """Run a layout in a directory of its own, or in a given one; ``arguments`` change the engine's."""
        config = read_layout(line).config()
        config["train"]["data"] = {"data_path": str(self.data()), "data_cache_path": str(self.root / "index")}
        config["train"]["model"] |= arguments
        where = directory or self.root / f"run-{next(self._numbers)}"
        return self.server.run(where, config, mutation, code, stop, timeout_s)

    def data(self) -> Path:
        """Prompts and answers of unlike lengths, as the product's own tool prepares them."""
        prefix = self.root / "data" / "questions"
        if not prefix.with_suffix(".idx").exists():
            prefix.parent.mkdir(parents=True, exist_ok=True)
            source = prefix.with_suffix(".jsonl")
            source.write_text("".join(json.dumps(question) + "\n" for question in _questions()))
            words = [str(source), "--sft", "--tokenizer", "byte", "--workers", "1", "--output", str(prefix)]
            self.server.call("tools.prepare_data", words, prefix.parent / "log")
        return prefix


def curve(outcome: Outcome) -> Curve:
    """What must be equal of every step."""
    names = ("loss", "grad_norm", "valid_loss")
    return [tuple(row[name] for name in names if name in row) for row in outcome.rows]


def deviation(found: Curve, reference: Curve) -> float:
    """The largest relative difference of two curves of the same length; infinite where only one has a number."""
    assert len(found) == len(reference) > 0
    pairs = zip(itertools.chain(*found), itertools.chain(*reference), strict=True)
    return max(_difference(a, b) for a, b in pairs)


def _difference(a: float | None, b: float | None) -> float:
    if a is None or b is None:
        return 0.0 if a is b else inf
    return abs(a - b) / abs(b)


def _questions() -> list[dict[str, str]]:
    """Sums, asked at some length and answered shortly, or the other way round."""
    draw = random.Random(0)
    found = []
    for _ in range(250):
        a, b = draw.randrange(1000), draw.randrange(10 ** draw.randrange(1, 9))
        ask = f"{a} + {b} = "
        found.append({"prompt": ask * draw.randrange(1, 4), "answer": f"{a + b}. " * draw.randrange(1, 5)})
    return found
