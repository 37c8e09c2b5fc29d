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
SPOKEN = (ExitCode.DO_NOT_RESTART, ExitCode.CONFIG, ExitCode.NO_PLAN, ExitCode.PREFLIGHT, ExitCode.TRANSIENT)
"""Words of which one rank's is enough, the gravest first."""
TAIL_LINES = 15
TRACEBACK_LINES = 40

_FAILURE = re.compile(r"\(local_rank: (\d+)\)\s+exitcode\s*:\s*(-?\d+) \(pid: (\d+)\)")
_FORCED = re.compile(r"Unable to shutdown process (\d+) via")
_PREFIX = re.compile(r"^\[rank\d+\]: ?")


@dataclass(frozen=True)
class Verdict:
    """The exit code of a run, why, and the words of the rank that failed."""

    exit_code: int
    reason: str = ""
    details: str = ""


def judge(exits: Mapping[int, dict[str, Any] | None]) -> Verdict | None:
    """The verdict of the ranks' last words (None: it said nothing); None when together they give none.

    One rank's word is enough to forbid a restart, to refuse what it finds, or to ask for a restart;
    that all is well, or saved, is true only when every rank says so.
    """
    words = [event for event in exits.values() if event]
    for code in SPOKEN:
        for event in words:
            if event["code"] == code:
                return Verdict(code, str(event.get("reason", "")))
    if len(words) < len(exits) or not {event["code"] for event in words} <= SAVED:
        return None
    event = max(words, key=lambda event: int(event["code"]))
    return Verdict(event["code"], str(event.get("reason", "")))


def find_culprit(agent_log: str, ranks: Sequence[int], exits: Mapping[int, dict[str, Any] | None]) -> int | None:
    """The rank that took the others with it; None when torchrun saw none fail.

    One that was killed, else the one that first told of an exception, else the first that torchrun lists.
    """
    codes = failures(agent_log, ranks)
    # torchrun ends what is left when one has failed, with SIGTERM, then by force: no culprit's death.
    forced = {ranks[int(local)] for local, _, pid in _FAILURE.findall(agent_log) if pid in _FORCED.findall(agent_log)}
    own = {rank: code for rank, code in codes.items() if -code != signal.SIGTERM and rank not in forced}
    killed = [rank for rank, code in own.items() if code < 0]
    told = {rank: event["time"] for rank, event in exits.items() if event and event["code"] == ExitCode.INTERNAL}
    return next(iter([*killed, *sorted(told, key=lambda rank: told[rank]), *own, *codes]), None)


def failures(agent_log: str, ranks: Sequence[int]) -> dict[int, int]:
    """Exit codes of the ranks that torchrun lists as failed."""
    return {ranks[int(local)]: int(code) for local, code, _ in _FAILURE.findall(agent_log)}


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
    return "\n".join(_last_traceback([_PREFIX.sub("", line) for line in lines]) or lines[-TAIL_LINES:])


def _last_traceback(lines: Sequence[str]) -> list[str]:
    """From its head to the exception, whose message it never loses: of a long one the middle is left out."""
    starts = [i for i, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    if not starts:
        return []
    start = starts[-1]
    end = next((i for i in range(start + 1, len(lines)) if not lines[i].startswith(" ")), len(lines) - 1)
    found, message = list(lines[start : end + 1]), list(lines[end + 1 : end + 1 + TAIL_LINES])
    if len(found) > TRACEBACK_LINES:
        found = [found[0], "  ...", *found[-TRACEBACK_LINES:]]
    return found + message
