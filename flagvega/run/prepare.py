"""From a launch to a run: takes the directory, writes its files, starts a supervisor."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flagvega.errors import Fault, PreflightError
from flagvega.launch.script import AFTER_STOP_SCRIPT, Launch, log_dir, render
from flagvega.records import Owner, write_text, writing
from flagvega.run.directory import Run, RunDirectory
from flagvega.run.processes import kill_processes

START_TIMEOUT_S = 30.0
FOLDERS = ("job", "events", "logs")


def prepare(launch: Launch, name: str, watch: Mapping[str, Any], files: Mapping[str, str]) -> RunDirectory:
    """Take the run directory and write all that the run reads; the lock is then this process's.

    ``files`` are written beside those of the job. PreflightError when another run has the directory, or
    when it cannot be written. What a run that died here left behind is ended first.
    """
    with writing(launch.run_dir):
        return _prepare(launch, name, watch, files)


def _prepare(launch: Launch, name: str, watch: Mapping[str, Any], files: Mapping[str, str]) -> RunDirectory:
    node = launch.rendezvous.node or 0
    directory = RunDirectory(launch.run_dir, node)
    for folder in (*(launch.run_dir / each for each in FOLDERS), log_dir(launch.run_dir, launch.job.nodes[node].host)):
        folder.mkdir(parents=True, exist_ok=True)
    lock = directory.lock.acquire()
    try:
        old = directory.read()
        if old and not old.finished:
            kill_processes(old.token)
        for stale in (launch.run_dir / AFTER_STOP_SCRIPT, directory.stop_file):
            stale.unlink(missing_ok=True)
        for path, text in {**files, **render(launch, node)}.items():
            write_text(launch.run_dir / path, text)
        directory.write(_new_run(launch, name, directory, watch))
    except BaseException:
        lock.release()
        raise
    return directory


def start_detached(directory: RunDirectory, environ: Mapping[str, str]) -> Run:
    """Start the supervisor as a process of its own, and return once it has started the ranks."""
    program = Path(__file__).with_name("__main__.py")
    argv = [sys.executable, str(program), str(directory.root), str(directory.node)]
    with directory.supervisor_log.open("wb") as log:
        process = subprocess.Popen(
            argv, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    directory.lock.hand_over(process.pid)
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        run = directory.read()
        if run and run.state != "starting":
            return run
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise PreflightError(Fault("the supervisor did not start", where=str(directory.supervisor_log)))


def _new_run(launch: Launch, name: str, directory: RunDirectory, watch: Mapping[str, Any]) -> Run:
    now, node = time.time(), directory.node
    metrics = directory.metrics_file
    return Run(
        run_id=f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}-{os.getpid()}",
        name=name,
        token=secrets.token_hex(16),
        host=launch.job.nodes[node].host,
        node=node,
        num_nodes=len(launch.job.nodes),
        ranks=launch.ranks[node],
        grace_s=launch.grace_s,
        started=now,
        supervisor=Owner.of(os.getpid()),
        agent=_agent(launch, node),
        watch=dict(watch),
        metrics_offset_bytes=metrics.stat().st_size if metrics.exists() else 0,
    )


def _agent(launch: Launch, node: int) -> str:
    job = launch.job.nodes[node]
    return job.argv[job.argv.index("-m") + 1] if job.is_launcher else "torchrun"
