"""Signs of life in a folder that hosts share: one touches a file again and again, others see that it changes."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

BEAT_S: Final = 1.0
SILENCE_S: Final = 60.0
"""Whoever has not been heard of for so long is gone; what changed in a network's folder may be seen half of it late."""


class Beat:
    """Touches a file that is there."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        """From now on."""
        self._thread.start()

    def stop(self) -> None:
        """No more."""
        self._done.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._done.wait(BEAT_S):
            with suppress(OSError):  # a network's folder that fails once must not silence us for good
                os.utime(self._file)


class Listener:
    """Hears a beat. What was left there before is not believed until it changes: it may be of somebody who died."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._last = self._time()
        self._heard: float | None = None

    def silent_s(self) -> float | None:
        """For how long nothing was heard; None when nothing ever was."""
        last = self._time()
        if last != self._last:
            self._last, self._heard = last, time.monotonic()
        return None if self._heard is None else time.monotonic() - self._heard

    def rest(self) -> None:
        """Nobody has listened for a while: from now on there may be silence for as long as ever."""
        if self._heard is not None:
            self._heard = time.monotonic()

    def _time(self) -> int | None:
        """By the clock of whoever beats, which is not ours."""
        try:
            return self._file.stat().st_mtime_ns
        except FileNotFoundError:
            return None
