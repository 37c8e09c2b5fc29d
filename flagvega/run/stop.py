"""Stops a run from any shell: asks first, then makes sure."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

from flagvega.errors import ExitCode, Fault, PreflightError
from flagvega.records import write_json
from flagvega.run.directory import Run, RunDirectory
from flagvega.run.processes import find_processes, kill_processes

Outcome = Literal["already stopped", "stopped", "killed", "asked"]

SLACK_S = 20.0
"""On top of the grace that the supervisor gives: for its own end and ``after_stop``."""
POLL_S = 0.1


def stop_run(directory: RunDirectory, force: bool, say: Callable[[str], None]) -> Outcome:
    """End a run and every process of it on this host.

    ``asked``: the run is another host's; it has been asked to stop through the shared directory.
    PreflightError when it is another user's.
    """
    run = directory.read()
    if run is None or (run.finished and not find_processes(run.token)):
        return "already stopped"
    if run.alive is None:
        _ask(directory)
        say(f"the run is on {run.supervisor.host if run.supervisor else 'another host'}: asked its ranks to stop")
        return "asked"
    check_ours(directory, run)
    asked = not force and _ask_and_wait(directory, run, say)
    return _make_sure(directory, run, asked)


def check_ours(directory: RunDirectory, run: Run) -> None:
    """PreflightError when this user may not signal the run's supervisor."""
    try:
        if run.supervisor and run.alive:
            os.kill(run.supervisor.pid, 0)
    except ProcessLookupError:
        pass
    except PermissionError as error:
        what, fix = "the run is another user's", "ask that user, or be root"
        raise PreflightError(Fault(what, str(directory.root), fix)) from error


def _ask_and_wait(directory: RunDirectory, run: Run, say: Callable[[str], None]) -> bool:
    """Whether the run ended by itself within its grace."""
    if run.supervisor and run.alive:
        os.kill(run.supervisor.pid, signal.SIGTERM)
    else:
        _ask(directory)
    say(f"asked the run to finish what it began, within {run.grace_s} s (force=true does not wait)")
    deadline = time.monotonic() + run.grace_s + SLACK_S
    while time.monotonic() < deadline:
        if not run.alive and not find_processes(run.token):
            return True
        time.sleep(POLL_S)
    return False


def _make_sure(directory: RunDirectory, run: Run, asked: bool) -> Outcome:
    if run.supervisor and run.alive:
        # Twice: the first asks its ranks, the second ends them.
        for _ in range(2):
            with suppress(ProcessLookupError):
                os.kill(run.supervisor.pid, signal.SIGTERM)
            _wait_for_supervisor(run, 1.0)
        _wait_for_supervisor(run, SLACK_S)
        if run.alive:
            with suppress(ProcessLookupError):
                os.kill(run.supervisor.pid, signal.SIGKILL)
    killed = kill_processes(run.token)
    last = directory.read()
    if last and not last.finished:
        reason = "its supervisor had died; stopped by action=stop"
        directory.write(last, state="stopped", ended=time.time(), exit_code=int(ExitCode.TERMINATED), reason=reason)
    directory.lock.release()
    return "stopped" if asked and not killed else "killed"


def _wait_for_supervisor(run: Run, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while run.alive and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _ask(directory: RunDirectory) -> None:
    write_json(directory.stop_file, {"code": int(ExitCode.TERMINATED), "reason": "action=stop"})
