"""What is drawn again and again on a terminal, and not at all elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live


class Watched:
    """A context manager that shows what ``render`` gives, as long as it is open, where somebody looks."""

    def __init__(
        self, console: Console, render: Callable[[], RenderableType], per_second: float, transient: bool = False
    ) -> None:
        """``transient``: nothing stays on the terminal at the end."""
        self.is_shown = console.is_terminal
        self._live: Live | None = None
        self._make = partial(
            Live, console=console, get_renderable=render, refresh_per_second=per_second, transient=transient
        )

    def __enter__(self) -> Self:
        if self.is_shown:
            self._live = self._make()
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
