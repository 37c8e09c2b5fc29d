"""A rank's life after start-up: steps, evaluations, checkpoints, until the end or a request to stop."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from backends.megatron.checkpoint import Checkpoints
from backends.megatron.events import Events, Metrics
from backends.megatron.feed import Dataset
from backends.megatron.progress import Extent, Position
from backends.megatron.trainer import StepResult, Trainer
from flagvega.errors import ExitCode, VerdictError

LEAVE = 256
"""The code of a request to leave at once, with nothing saved, as if all were done: of one who only measures."""


class NotFiniteError(VerdictError):
    """A loss or a gradient that is no number."""


@dataclass(frozen=True)
class Datasets:
    """Training and validation samples; None on ranks that need none."""

    train: Dataset | None
    valid: Dataset | None


class StopRequest:
    """A request to leave: a file written by the supervisor, or SIGTERM to this very rank."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "stop"
        self._signalled = 0
        signal.signal(signal.SIGTERM, self._note)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to handle

    def _note(self, *_: Any) -> None:
        self._signalled = int(ExitCode.TERMINATED)

    def code(self) -> int:
        """The exit code asked for, or 0."""
        if self._path.exists():
            try:
                return int(json.loads(self._path.read_text())["code"]) or LEAVE
            except (ValueError, KeyError):
                return int(ExitCode.TERMINATED)
        return self._signalled


def train(trainer: Trainer, datasets: Datasets, extent: Extent, position: Position, checkpoints: Checkpoints,
          events: Events, metrics: Metrics | None, stop: StopRequest) -> int:  # fmt: skip
    """Train from ``position`` to the end of ``extent``; the exit code. ``metrics`` on one rank only."""
    arguments = trainer.arguments
    begin = time.monotonic()
    while not extent.is_done(position.step, position.consumed_samples):
        batch_size = extent.batch_size(position.consumed_samples)
        trainer.device.begin_step(position.step)
        lr = trainer.lr
        result = trainer.step(datasets.train, position.consumed_samples, batch_size, stop.code())
        position.step += 1
        position.consumed_samples += batch_size
        _check_finite(trainer, result, position.step)
        row = _row(trainer, result, position, lr)
        if _is_due(position.step, arguments["eval_interval"]) and arguments["eval_iters"]:
            row["valid_loss"] = trainer.evaluate(datasets.valid, 0, extent.global_batch_size, arguments["eval_iters"])
        if metrics is not None and _is_due(position.step, arguments["log_interval"]):
            metrics.tell(row)
        if result.stop_code == LEAVE:
            return int(ExitCode.DONE)
        is_last = _is_over(arguments, position.step, begin)
        if result.stop_code or is_last or _is_due(position.step, arguments["save_interval"]):
            checkpoints.save(trainer, position)
        if result.stop_code:
            events.tell("stopped", step=position.step, code=result.stop_code)
            return result.stop_code
        if is_last:
            return int(ExitCode.DONE)
    if arguments["save_interval"]:
        checkpoints.save(trainer, position)
    return int(ExitCode.DONE)


def _is_due(step: int, interval: int | None) -> bool:
    return bool(interval) and step % (interval or 1) == 0


def _is_over(arguments: Mapping[str, Any], step: int, begin: float) -> bool:
    """Whether exit_interval or exit_duration_in_mins ends the run here; collective when the latter is set."""
    minutes = arguments["exit_duration_in_mins"]
    if minutes is None:
        return _is_due(step, arguments["exit_interval"])
    is_late = torch.tensor(int(time.monotonic() - begin > minutes * 60))
    dist.all_reduce(is_late)
    return bool(is_late) or _is_due(step, arguments["exit_interval"])


def _check_finite(trainer: Trainer, result: StepResult, step: int) -> None:
    """A number that no restart would mend; a gradient that fp16's loss scaling skipped has no norm."""
    if not trainer.arguments["check_for_nan_in_loss_and_grad"]:
        return
    for name, value in (("loss", result.loss), ("gradient norm", result.grad_norm)):
        if value is not None and not math.isfinite(value):
            raise NotFiniteError(f"the {name} of step {step} is {value}: the same step would fail again")


def _row(trainer: Trainer, result: StepResult, position: Position, lr: float) -> dict[str, Any]:
    row: dict[str, Any] = {
        "step": position.step,
        "loss": result.loss,
        "grad_norm": result.grad_norm,
        "lr": lr,
        "tokens": result.tokens,
        "samples": position.consumed_samples,
        "iter_time_s": result.iter_time_s,
        "tokens_per_s": result.tokens / result.iter_time_s,
        "busy": [round(share, 4) for share in result.busy],
        "peak_bytes": list(result.peak_bytes),
    }
    if trainer.arguments["fp16"]:
        row["loss_scale"] = float(trainer.optimizer.get_loss_scale())
    if not result.is_updated:
        row["skipped"] = True
    return row
