"""Processes of a run, found by the token in their environment and ended for good."""

from __future__ import annotations

import os
import time
from contextlib import suppress

import psutil

TOKEN_ENV = "FLAGVEGA_RUN_TOKEN"
POLL_S = 0.05


def find_processes(token: str) -> list[psutil.Process]:
    """All living processes of this user that carry the token, and their descendants."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(TOKEN_ENV) == token:
                found[process.pid] = process
                found.update({child.pid: child for child in process.children(recursive=True)})
    found.pop(os.getpid(), None)
    return [process for process in found.values() if is_alive(process)]


def kill_processes(token: str, timeout_s: float = 10.0) -> int:
    """Kill them until none is left (one may be born while others die); how many there were."""
    deadline = time.monotonic() + timeout_s
    killed: set[int] = set()
    while processes := find_processes(token):
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
                killed.add(process.pid)
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_S)
    return len(killed)


def is_alive(process: psutil.Process) -> bool:
    """Whether a process can still do something: a zombie cannot."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
