"""What a user watches on a terminal while a layout is looked for."""

from __future__ import annotations

import time

from rich.console import Console
from rich.text import Text

from flagvega.report.planning import seconds
from flagvega.report.watched import Watched


class SearchView(Watched):
    """One line that goes when the search has ended: seconds, and the best so far. Nothing where it is no terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, self.line, per_second=4, transient=True)
        self._begin = time.monotonic()
        self._best_s: float | None = None
        self._num_found = 0

    def better(self, step_s: float) -> None:
        """A layout was found that is better than all before."""
        self._best_s = step_s
        self._num_found += 1

    def line(self) -> Text:
        """What is shown now."""
        took = f"looking for a layout, {time.monotonic() - self._begin:.0f} s"
        if self._best_s is None:
            return Text(f"{took}: none yet", style="dim")
        return Text(f"{took}: best so far {seconds(self._best_s)} a step, number {self._num_found}", style="dim")
