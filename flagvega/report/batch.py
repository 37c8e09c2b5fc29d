"""A batch of prompts as it goes on: a bar, where somebody looks."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flagvega.records import count_lines

EVERY_S = 0.5


class BatchView:
    """Counts results as they come; shows nothing where there are no prompts, or nobody looks."""

    def __init__(self, console: Console, file: Path, prompts: list[str]) -> None:
        self.file, self.total, self.num_done = file, len(prompts), count_lines(file)
        columns = (TextColumn("prompts"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, disable=not (prompts and console.is_terminal))
        self._task = self._progress.add_task("prompts", total=self.total, completed=self.num_done)
        self._looked = 0.0

    def __enter__(self) -> BatchView:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._looked = 0.0
        self.update()
        self._progress.stop()

    def update(self) -> None:
        """Look, now and then."""
        if self.total and time.monotonic() - self._looked > EVERY_S:
            self._looked = time.monotonic()
            self.num_done = count_lines(self.file)
            self._progress.update(self._task, completed=self.num_done)
