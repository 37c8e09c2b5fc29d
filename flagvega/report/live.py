"""What a user watches while a run goes on: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flagvega.records import Lines
from flagvega.report.progress import Progress
from flagvega.report.watched import Watched

LINE_INTERVAL_S = 1.0
"""At most one plain line in this time, so that short steps do not flood a log."""


class LiveView(Watched):
    """Follows the metrics of a run; a context manager, told to look by :meth:`update`."""

    def __init__(self, console: Console, lines: Lines, facts: Mapping[str, Any]) -> None:
        super().__init__(console, self._table, per_second=4)
        self.progress = Progress(facts)
        self._console, self._lines = console, lines
        self._shown_s = 0.0
        self._pending = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if self._pending and not self.is_shown:
            self._print_line()

    def update(self) -> None:
        """Read what was written since the last call, and show it."""
        for row in self._lines.read():
            self.progress.add(row)
            self._pending = True
            if not self.is_shown and time.monotonic() - self._shown_s >= LINE_INTERVAL_S:
                self._print_line()

    def say(self, text: str) -> None:
        """A line above the table, or between the plain ones, where it belongs in time."""
        if self._pending and not self.is_shown:
            self._print_line()
        self._console.print(Text(text), soft_wrap=True)

    def _print_line(self) -> None:
        self._shown_s = time.monotonic()
        self._pending = False
        fields = self.progress.fields()
        self._console.print(Text("  ".join(f"{name} {value}" for name, value in fields.items())), soft_wrap=True)

    def _table(self) -> RenderableType:
        fields = self.progress.fields()
        if not fields:
            return Text("starting ...", style="dim")
        table = Table(box=None, pad_edge=False)
        for name in fields:
            table.add_column(name, justify="right", no_wrap=True)
        table.add_row(*fields.values())
        total, last = self.progress.facts.get("total_steps"), self.progress.last
        if not total or last is None:
            return table
        return Group(table, ProgressBar(total=total, completed=last["step"], width=60))
