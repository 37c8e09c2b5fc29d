"""Starts a decided run and follows it to its end: what ``run`` and ``test`` share."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from flagvega.actions.call import Call
from flagvega.actions.decide import Decision, watch_facts
from flagvega.config.spec import Spec
from flagvega.errors import ConfigError, ExitCode, Fault, PreflightError
from flagvega.launch.join import agree
from flagvega.launch.preflight import check_devices, check_port
from flagvega.launch.rendezvous import Rendezvous, find_interface
from flagvega.launch.script import secrets
from flagvega.report.live import LiveView
from flagvega.report.progress import Progress
from flagvega.run.directory import Run, RunDirectory
from flagvega.run.prepare import prepare
from flagvega.run.supervisor import Supervisor

JOIN_TOKEN_ENV = "FLAGVEGA_JOIN_TOKEN"
AGREED_PACKAGES = ("flagvega", "megatron-core")


def ready(call: Call, decision: Decision, with_data: bool = True) -> RunDirectory:
    """Check this host, take the run directory, write its files, and meet the other hosts; PreflightError if not.

    Without ``with_data``, the files that a training would read are not asked for.
    """
    launch = decision.launch
    node = _this_node(call, decision)
    if lacking := call.engine.check_host():
        raise PreflightError(lacking)
    if with_data and (missing := call.engine.check_files(decision.spec)):
        raise ConfigError(missing)
    faults = check_port(launch.rendezvous) + check_devices(decision.cluster.nodes[launch.job.nodes[node].node])
    if faults:
        raise PreflightError(faults)
    directory = prepare(launch, decision.spec.name, watch_facts(decision), {"config.yaml": _config_text(decision)})
    try:
        token = os.environ.get(JOIN_TOKEN_ENV) or str(decision.spec.runner.options.get("rdzv_id", decision.spec.name))
        agree(launch.rendezvous, token, _agreed_facts(decision), call.say)
    except BaseException as error:
        run = directory.read()
        if run:
            code = int(getattr(error, "exit_code", ExitCode.INTERNAL))
            directory.write(run, state="failed", ended=time.time(), exit_code=code, reason=str(error))
        directory.lock.release()
        raise
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
    return {action: f"{_program()} action={action} {where}" for action in ("status", "logs", "stop")}


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
    return {"resume": f"{_program()} {shlex.join(sys.argv[1:])}"} if run.state == "stopped" else {}


def _this_node(call: Call, decision: Decision) -> int:
    rendezvous = decision.launch.rendezvous
    if rendezvous.node is not None:
        return rendezvous.node
    hosts = [node.host for node in decision.launch.job.nodes]
    if len(hosts) == 1:
        fix = f"type the same command there; or, if this is {hosts[0]}, add experiment.runner.node_rank=0"
    else:
        fix = "\n    ".join(["type on each host:", *host_commands(decision)])
    raise PreflightError(Fault("this host is none of the run's", ", ".join(hosts), fix))


def host_commands(decision: Decision) -> list[str]:
    """What to type on each host of a run of several."""
    hosts = {node.node: node.host for node in decision.launch.job.nodes}
    return commands_by_host(decision.spec, decision.launch.rendezvous, hosts)


def commands_by_host(spec: Spec, rendezvous: Rendezvous, hosts: Mapping[int, str]) -> list[str]:
    """This command as it is typed on each host."""
    words = [word for word in sys.argv[1:] if not word.startswith("experiment.runner.node_rank=")]
    words += [] if spec.runner.master_addr else [f"experiment.runner.master_addr={rendezvous.address}"]
    words += [] if spec.runner.master_port else [f"experiment.runner.master_port={rendezvous.port}"]
    return [
        f"{host}: {_program()} {shlex.join([*words, f'experiment.runner.node_rank={node}'])}"
        for node, host in hosts.items()
    ]


def _program() -> str:
    """How the user called us."""
    path = Path(sys.argv[0])
    if path.name == "__main__.py":
        return "python -m flagvega"
    return f"python {shlex.quote(sys.argv[0])}" if path.suffix == ".py" else path.name


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


def installed_version(package: str) -> str:
    """The version of a package, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
