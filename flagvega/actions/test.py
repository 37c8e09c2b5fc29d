"""``action=test``: a few real steps with everything as configured, checked."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flagvega.actions.call import Answer, Call
from flagvega.actions.decide import check_shared, decide
from flagvega.actions.follow import follow, ready, summary
from flagvega.config.spec import Spec
from flagvega.errors import ExitCode
from flagvega.run.directory import RunDirectory

NUM_STEPS = 5
MAX_GROWTH = 1.1
"""The last loss may be this many times the first: few steps of a warm-up need not lower it yet."""


def act(call: Call) -> Answer:
    """Train a few steps in ``<exp_dir>/test``, always from the start, save once, and look at what came out."""
    num_steps = call.number("steps", NUM_STEPS)
    check_shared(call.spec)
    decision = decide(call, _shorten(call.spec, num_steps))
    directory = ready(call, decision)
    _drop_checkpoints(directory)
    lines = directory.metrics()
    run, progress = follow(call, decision, directory)
    _drop_checkpoints(directory)
    faults = [run.reason] if run.exit_code else judge_steps(lines.read())
    document = summary(run, progress, directory) | {"passed": not faults, "faults": faults}
    if not faults:
        return Answer(document, (f"passed: {document['steps']} steps, loss {document['loss']:.4f}",))
    return Answer(document, ("failed:", *faults), run.exit_code or int(ExitCode.INTERNAL))


def _drop_checkpoints(directory: RunDirectory) -> None:
    """Those of the test: the next one must not go on from them."""
    shutil.rmtree(directory.root / "checkpoints", ignore_errors=True)


def judge_steps(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with the metrics of a few steps; empty when all is well."""
    if not rows:
        return ["no step was reported"]
    faults = [
        f"step {row['step']}: {name.replace('_', ' ')} is {row[name]}"
        for row in rows
        for name in ("loss", "grad_norm")
        if row[name] is not None and not math.isfinite(row[name])
    ]
    first, last = rows[0]["loss"], rows[-1]["loss"]
    if last > MAX_GROWTH * first:
        faults.append(f"the loss grows: {first:.4f} at step {rows[0]['step']}, {last:.4f} at step {rows[-1]['step']}")
    return faults


def _shorten(spec: Spec, num_steps: int) -> Spec:
    """The same training, left after a few steps: schedules stay as they are."""
    short = {"exit_interval": num_steps, "log_interval": 1, "save": None, "save_interval": None, "eval_interval": None}
    return replace(spec, exp_dir=spec.exp_dir / "test", arguments={**spec.arguments, **short})
