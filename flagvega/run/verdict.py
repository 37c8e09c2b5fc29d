"""How a run ended: the word of its ranks, not the exit code of what started them."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flagvega.errors import ExitCode

SAVED = {ExitCode.DONE, ExitCode.TERMINATED, ExitCode.INTERRUPTED}
"""Words of ranks that left in order."""
TAIL_LINES = 15
TRACEBACK_LINES = 40

_FAILED = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+)")


@dataclass(frozen=True)
class Verdict:
    """The exit code of a run, why, and the words of the rank that failed."""

    exit_code: int
    reason: str = ""
    details: str = ""


def judge(exits: Mapping[int, dict[str, Any] | None]) -> Verdict | None:
    """The verdict of the ranks' last words (None: it said nothing); None when together they give none.

    One rank's word is enough to forbid a restart, or to ask for one; that all is well, or saved, is
    true only when every rank says so.
    """
    words = [event for event in exits.values() if event]
    for code in (ExitCode.DO_NOT_RESTART, ExitCode.TRANSIENT):
        for event in words:
            if event["code"] == code:
                return Verdict(code, str(event.get("reason", "")))
    if len(words) < len(exits) or not {event["code"] for event in words} <= SAVED:
        return None
    event = max(words, key=lambda event: int(event["code"]))
    return Verdict(event["code"], str(event.get("reason", "")))


def first_failure(agent_log: str) -> tuple[int, int] | None:
    """(local index, exit code) of the rank that torchrun saw fail first."""
    match = _FAILED.search(agent_log)
    return (int(match[2]), int(match[1])) if match else None


def describe_death(code: int) -> str:
    """What an exit code of a process says to a human."""
    if code >= 0:
        return f"ended with code {code}"
    name = signal.Signals(-code).name
    hint = "; often the machine ran out of memory" if -code == signal.SIGKILL else ""
    return f"was killed ({name}{hint})"


def last_words(log: Path) -> str:
    """The last traceback of a log, else its last lines."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    start = _last_traceback(lines)
    return "\n".join(lines[start : start + TRACEBACK_LINES] if start is not None else lines[-TAIL_LINES:])


def _last_traceback(lines: Sequence[str]) -> int | None:
    starts = [i for i, line in enumerate(lines) if "Traceback (most recent call last)" in line]
    return starts[-1] if starts else None
