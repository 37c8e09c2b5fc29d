"""One trial of a layout: a run in its own folder, with the launcher of ``action=run``."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from flagvega.actions.call import Call
from flagvega.actions.decide import decide
from flagvega.actions.follow import environment, ready
from flagvega.config.spec import Spec
from flagvega.layout.codec import plan_to_json
from flagvega.layout.plan import Plan
from flagvega.records import write_json
from flagvega.tune.measure import Limits
from flagvega.tune.study import Outcome
from flagvega.tune.trial import clear, read_outcome, start, stop

POLL_S = 0.05
SHORT: Mapping[str, Any] = {"log_interval": 1, "save_interval": None, "eval_interval": None}
"""Arguments of every trial: it reports each step, saves nothing and evaluates nothing."""


def write_plan(folder: Path, plan: Plan) -> None:
    """Where the trial in a folder reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "plan.json", plan_to_json(plan))


def trial_spec(spec: Spec, folder: Path, has_plan: bool, num_steps: int = 0) -> Spec:
    """What a trial runs: the candidate in its own folder, with the plan there if it has one, for at least so many
    steps."""
    blocks = {name: block for name, block in spec.blocks.items() if name != "auto_tuner"}
    if has_plan:
        blocks["plan"] = {"file": str(folder / "plan.json")}
    arguments = {**spec.arguments, **SHORT}
    if (given := arguments.get("train_iters")) is not None:
        arguments["train_iters"] = max(given, num_steps)
    return replace(spec, exp_dir=folder, arguments=arguments, blocks=blocks)


def run_trial(call: Call, spec: Spec, folder: Path, limits: Limits, limit_bytes: Sequence[float] = (),
              is_wanted: Callable[[], bool] = lambda: True) -> Outcome:  # fmt: skip
    """Run one trial to its end, whatever that is, or until it is not wanted; nothing of it is left running."""
    quiet = replace(call, console=Console(stderr=True, quiet=True))
    quiet.__dict__["engine"] = call.engine
    decision = decide(quiet, spec)
    directory = ready(quiet, decision)
    began = time.monotonic()
    process = start(directory, environment(decision), limits)
    try:
        while process.poll() is None:
            time.sleep(POLL_S)
            if not is_wanted():
                stop(directory, process)
    except BaseException:
        stop(directory, process)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    clear(directory)
    outcome = read_outcome(directory, limits, time.monotonic() - began, limit_bytes)
    for name in ("cache", "checkpoints", "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return outcome
