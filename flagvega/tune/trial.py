"""One trial: a real run under a supervisor of its own, which ends when enough is known or the tuner is gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flagvega.errors import ExitCode
from flagvega.records import Lines, read_json, write_json
from flagvega.run.directory import Run, RunDirectory
from flagvega.run.processes import kill_processes
from flagvega.tune.measure import Limits, Measured, judge, read_steps
from flagvega.tune.study import GOOD, Outcome, Status

VERDICT_FILE = "verdict.json"
"""Why the supervisor of a trial ended it, in the trial's folder."""
LEAVE_S = 15.0
"""Seconds that ranks have to leave when enough is known."""
OUT_OF_MEMORY, NOT_FINITE = "OutOfMemoryError", "NotFiniteError"
"""What ranks call these ends in their last event."""
INVALID_TIMING = "invalid_timing"
"""What they tell where an emulated chip's host did not keep up with it."""


class Watcher:
    """Looks at a trial from inside its supervisor."""

    def __init__(self, directory: RunDirectory, limits: Limits, parent: int) -> None:
        self.directory, self.limits, self.parent = directory, limits, parent
        self.lines: Lines = directory.metrics()
        self.rows: list[Mapping[str, Any]] = []
        self.deadline = time.monotonic() + limits.max_time_s
        self.asked: float | None = None

    def look(self) -> None:
        """Called ten times a second."""
        if os.getppid() != self.parent:
            self._end("the tuner is gone")
        elif self.directory.node:
            return  # host 0 judges: its file to stop is read by all ranks
        elif self.asked is not None:
            if time.monotonic() > self.asked:
                self._end(None)
        elif time.monotonic() > self.deadline:
            self._end("hang")
        elif more := self.lines.read():
            self.rows += more
            word = judge(read_steps(self.rows, self.limits.warmup_iters), self.limits)
            if word != "more":
                self._leave(word)

    def _leave(self, word: str) -> None:
        """Ask the ranks to leave without saving: a file with code 0 says so."""
        write_json(self.directory.root / VERDICT_FILE, {"word": word})
        write_json(self.directory.stop_file, {"code": int(ExitCode.DONE), "reason": "enough is known"})
        self.asked = time.monotonic() + LEAVE_S

    def _end(self, word: str | None) -> None:
        """Twice: the supervisor takes the first for a request, the second for an order."""
        if word is not None:
            write_json(self.directory.root / VERDICT_FILE, {"word": word})
        self.asked = time.monotonic() + LEAVE_S
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)


def start(directory: RunDirectory, environ: Mapping[str, str], limits: Limits) -> subprocess.Popen[bytes]:
    """Start the supervisor of a prepared trial; it owns the directory from then on."""
    program = Path(__file__).with_name("__main__.py")
    where = [str(directory.root), str(directory.node)]
    argv = [sys.executable, str(program), *where, str(os.getpid()), json.dumps(asdict(limits))]
    with directory.supervisor_log.open("wb") as log:
        process = subprocess.Popen(
            argv, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    with suppress(Exception):
        directory.lock.hand_over(process.pid)
    return process


def stop(directory: RunDirectory, process: subprocess.Popen[bytes]) -> None:
    """End a trial now, and every process of it."""
    for _ in range(2):
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    with suppress(subprocess.TimeoutExpired):
        process.wait(10.0)
    process.kill()
    process.wait()
    clear(directory)


def clear(directory: RunDirectory) -> None:
    """End whatever a trial left running."""
    run = directory.read()
    if run is not None:
        kill_processes(run.token)


def read_outcome(directory: RunDirectory, limits: Limits, took_s: float, limit_bytes: Sequence[float] = ()) -> Outcome:
    """How a trial ended, from its files alone; ``limit_bytes``: what a device of each stage may hold, where known."""
    run = directory.read()
    measured = read_steps(directory.metrics().read(), limits.warmup_iters)
    status, reason = _judge(directory, run, measured, _word(directory))
    if status in GOOD and (invalid := _invalid_timing(directory)):
        status, reason = "invalid_timing", invalid
    has_time = bool(measured.steps) and status in GOOD
    return Outcome(
        status,
        reason,
        time_s=measured.typical_s if has_time else None,
        half_width_s=min(measured.half_width_s, 1e9) if has_time else None,
        steps=measured.steps,
        tokens_per_s=measured.tokens_per_s if has_time else None,
        measured_memory_share=_memory_share(measured, limit_bytes),
        busy=measured.busy,
        loss=measured.loss if measured.steps and measured.is_finite else None,
        rank=_rank_without_memory(directory) if status == "oom" else None,
        took_s=took_s,
        notes=tuple(run.notes) if run else (),
    )


def _memory_share(measured: Measured, limit_bytes: Sequence[float]) -> float | None:
    """Of the fullest device's memory."""
    if not measured.steps or len(measured.peak_bytes) != len(limit_bytes):
        return None
    return max((peak / limit for peak, limit in zip(measured.peak_bytes, limit_bytes, strict=True)), default=0) or None


def _judge(directory: RunDirectory, run: Run | None, measured: Measured, word: str | None) -> tuple[Status, str]:
    if word in ("enough", "worse"):
        return ("ok", "") if word == "enough" else ("worse", "clearly slower than the best")
    if word == "nan" or not measured.is_finite:
        return "nan", f"the loss is {measured.loss}"
    if word == "hang":
        return "hang", f"no end within its time; {len(measured.steps)} steps were measured"
    errors = {name for _, name in _last_errors(directory)}
    if OUT_OF_MEMORY in errors:
        return "oom", _first_line(run)
    if NOT_FINITE in errors:
        return "nan", _first_line(run)
    if run is None or not run.finished:
        return "crash", "its supervisor died"
    if run.exit_code:
        return "crash", _first_line(run) or f"exit code {run.exit_code}"
    if not measured.steps:
        return "crash", "it ended before a step was measured"
    return "ok", ""


def _last_errors(directory: RunDirectory) -> list[tuple[int, str]]:
    """(rank, the name of the error that it told in its last event), of all hosts."""
    found = []
    for rank in directory.told_ranks():
        exits = [event for event in directory.events(rank) if event.get("event") == "exit"]
        if exits and exits[-1].get("error"):
            found.append((rank, str(exits[-1]["error"])))
    return found


def _invalid_timing(directory: RunDirectory) -> str:
    """Why the timings do not count, as a rank tells it; nothing where they do."""
    events = (event for rank in directory.told_ranks() for event in directory.events(rank))
    return next((str(event["reason"]) for event in events if event.get("event") == INVALID_TIMING), "")


def _rank_without_memory(directory: RunDirectory) -> int | None:
    return next((rank for rank, name in _last_errors(directory) if name == OUT_OF_MEMORY), None)


def _first_line(run: Run | None) -> str:
    """Without the path of a log, which is another one in each trial."""
    return run.reason.partition("\n")[0].partition("; its log:")[0] if run else ""


def _word(directory: RunDirectory) -> str | None:
    try:
        return str(read_json(directory.root / VERDICT_FILE)["word"])
    except (FileNotFoundError, ValueError, KeyError):
        return None
