"""Starts a decided run and follows it to its end: what ``run`` and ``test`` share."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from flagvega.actions.call import Call
from flagvega.actions.decide import Decision, watch_facts
from flagvega.actions.meeting import installed_version, meet, program, this_host
from flagvega.errors import ConfigError, PreflightError
from flagvega.launch.preflight import check_devices, check_port
from flagvega.launch.rendezvous import find_interface
from flagvega.launch.script import secrets
from flagvega.report.live import LiveView
from flagvega.report.progress import Progress
from flagvega.run.directory import Run, RunDirectory
from flagvega.run.prepare import prepare
from flagvega.run.supervisor import Supervisor

AGREED_PACKAGES = ("flagvega", "megatron-core")


def ready(call: Call, decision: Decision, with_data: bool = True) -> RunDirectory:
    """Check this host, take the run directory, write its files, and meet the other hosts; PreflightError if not.

    Without ``with_data``, the files that a training would read are not asked for.
    """
    spec, launch = decision.spec, decision.launch
    node = this_host(spec, launch)
    if lacking := call.engine.check_host():
        raise PreflightError(lacking)
    if with_data and (missing := call.engine.check_files(spec)):
        raise ConfigError(missing)
    faults = check_port(launch.rendezvous) + check_devices(decision.cluster.nodes[launch.job.nodes[node].node])
    if faults:
        raise PreflightError(faults)
    directory = prepare(launch, spec.name, watch_facts(decision), {"config.yaml": _config_text(decision)})
    meet(spec, launch, directory, _agreed_facts(decision), call.say)
    return directory


def environment(decision: Decision) -> dict[str, str]:
    """Of the supervisor: the user's own, the secrets that no file holds, and this host's way to the others."""
    rendezvous = decision.launch.rendezvous
    return {**find_interface(rendezvous), **os.environ, **secrets(decision.launch, rendezvous.node or 0)}


def follow(call: Call, decision: Decision, directory: RunDirectory) -> tuple[Run, Progress]:
    """Run in the foreground, with the live view on stderr; how it ended."""
    try:
        with LiveView(call.console, directory.metrics(), watch_facts(decision)) as view:
            supervisor = Supervisor(directory, say=view.say, watch=view.update)
            return supervisor.supervise(environment(decision)), view.progress
    finally:
        directory.lock.release()


def next_commands(run_dir: Path) -> dict[str, str]:
    """What a user may want to type next about a run."""
    where = shlex.quote(f"run_dir={run_dir}")
    return {action: f"{program()} action={action} {where}" for action in ("status", "logs", "stop")}


def summary(run: Run, progress: Progress, directory: RunDirectory) -> dict[str, Any]:
    """How a run ended, for programs."""
    last: Mapping[str, Any] = progress.last or {}
    return {
        "run_id": run.run_id,
        "run_dir": str(directory.root),
        "state": run.state,
        "exit_code": run.exit_code,
        "reason": run.reason,
        "notes": list(run.notes),
        "start_step": run.start_step,
        "steps": last.get("step"),
        "first_loss": progress.first["loss"] if progress.first else None,
        "loss": last.get("loss"),
        "tokens_per_s": progress.tokens_per_s if last else None,
        "mfu": progress.mfu if last else None,
        "next": next_commands(directory.root) | _resume(run),
    }


def _resume(run: Run) -> dict[str, str]:
    """The same command goes on from the newest checkpoint."""
    return {"resume": f"{program()} {shlex.join(sys.argv[1:])}"} if run.state == "stopped" else {}


def _config_text(decision: Decision) -> str:
    return yaml.safe_dump(dict(decision.spec.composed), sort_keys=False, allow_unicode=True)


def _agreed_facts(decision: Decision) -> dict[str, Any]:
    """What all hosts must have alike: every file of the job, wherever each host keeps its run directory."""
    text = json.dumps(decision.launch.job.files, ensure_ascii=False)
    root = json.dumps(str(decision.launch.run_dir), ensure_ascii=False)[1:-1]
    return {
        **json.loads(text.replace(root, "<exp_dir>")),
        "versions": {name: installed_version(name) for name in AGREED_PACKAGES},
    }
