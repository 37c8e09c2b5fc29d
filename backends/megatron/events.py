"""What a rank tells the world: events, metrics, TensorBoard and W&B."""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flagvega.records import append_json_line


class Events:
    """Appends to ``events/rank-<r>.jsonl``."""

    def __init__(self, run_dir: Path, rank: int) -> None:
        self.path = run_dir / "events" / f"rank-{rank}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def tell(self, event: str, **facts: Any) -> None:
        """Record one event, with the time in seconds since the epoch."""
        append_json_line(self.path, {"time": time.time(), "event": event, **facts})


class Metrics:
    """Appends an object a step to ``metrics.jsonl``, and to the boards the user asked for."""

    def __init__(self, run_dir: Path, arguments: Mapping[str, Any], name: str) -> None:
        self.path = run_dir / "metrics.jsonl"
        self._tensorboard = _open_tensorboard(run_dir, arguments)
        self._wandb = _open_wandb(run_dir, arguments, name)
        self._board_interval = arguments["tensorboard_log_interval"]

    def tell(self, row: Mapping[str, Any]) -> None:
        """Record one step."""
        append_json_line(self.path, row)
        if row["step"] % self._board_interval:
            return
        numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
        for name, value in numbers.items():
            if self._tensorboard is not None:
                self._tensorboard.add_scalar(name, value, row["step"])
        if self._wandb is not None:
            self._wandb.log(numbers, step=row["step"])

    def close(self) -> None:
        """Flush the boards."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def _open_tensorboard(run_dir: Path, arguments: Mapping[str, Any]) -> Any:
    """TensorBoard in the run directory, or where ``tensorboard_dir`` says; None where it is not installed."""
    if find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run_dir / (arguments["tensorboard_dir"] or "tensorboard")))


def _open_wandb(run_dir: Path, arguments: Mapping[str, Any], name: str) -> Any:
    """W&B where it is installed and a project is named; WANDB_MODE and the key come from the environment."""
    if not arguments["wandb_project"]:
        return None
    if find_spec("wandb") is None:
        return None
    import wandb

    directory = arguments["wandb_save_dir"] or str(run_dir)
    return wandb.init(project=arguments["wandb_project"], name=arguments["wandb_exp_name"] or name, dir=directory)
