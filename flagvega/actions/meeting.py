"""The hosts of one run: which of them this is, what to type on each, and how they meet before they start."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from flagvega.config.spec import Spec
from flagvega.errors import ExitCode, Fault, PreflightError
from flagvega.launch.join import agree
from flagvega.launch.rendezvous import Rendezvous
from flagvega.launch.script import Launch
from flagvega.run.directory import RunDirectory

JOIN_TOKEN_ENV = "FLAGVEGA_JOIN_TOKEN"


def this_host(spec: Spec, launch: Launch) -> int:
    """Which of the job's hosts this is; PreflightError, with what to type where, when it is none of them."""
    if launch.rendezvous.node is not None:
        return launch.rendezvous.node
    hosts = [node.host for node in launch.job.nodes]
    if len(hosts) == 1:
        fix = f"type the same command there; or, if this is {hosts[0]}, add experiment.runner.node_rank=0"
    else:
        fix = "\n    ".join(["type on each host:", *host_commands(spec, launch)])
    raise PreflightError(Fault("this host is none of the run's", ", ".join(hosts), fix))


def say_commands(spec: Spec, launch: Launch, say: Callable[[str], None]) -> None:
    """On the first of several hosts, tell what to type on each."""
    if launch.rendezvous.num_nodes > 1 and launch.rendezvous.node == 0:
        say("\n    ".join(["each host of this run needs its command:", *host_commands(spec, launch)]))


def host_commands(spec: Spec, launch: Launch) -> list[str]:
    """What to type on each host of a run of several."""
    return commands_by_host(spec, launch.rendezvous, {node.node: node.host for node in launch.job.nodes})


def commands_by_host(spec: Spec, rendezvous: Rendezvous, hosts: Mapping[int, str]) -> list[str]:
    """This command as it is typed on each host."""
    words = [word for word in sys.argv[1:] if not word.startswith("experiment.runner.node_rank=")]
    words = ["action=run" if word == "action=dryrun" else word for word in words]
    words += [] if spec.runner.master_addr else [f"experiment.runner.master_addr={rendezvous.address}"]
    words += [] if spec.runner.master_port else [f"experiment.runner.master_port={rendezvous.port}"]
    words += [] if spec.runner.nnodes > max(hosts) else [f"experiment.runner.nnodes={max(hosts) + 1}"]
    return [
        f"{host}: {program()} {shlex.join([*words, f'experiment.runner.node_rank={node}'])}"
        for node, host in hosts.items()
    ]


def meet(spec: Spec, launch: Launch, directory: RunDirectory, facts: Mapping[str, Any],
         say: Callable[[str], None]) -> None:  # fmt: skip
    """Meet the other hosts, which must have the same facts; where that fails the run has failed.

    :raises PreflightError: they are about to run something else, or do not come.
    """
    try:
        token = os.environ.get(JOIN_TOKEN_ENV) or str(spec.runner.options.get("rdzv_id", spec.name))
        agree(launch.rendezvous, token, facts, say)
    except BaseException as error:
        run = directory.read()
        if run:
            code = int(getattr(error, "exit_code", ExitCode.INTERNAL))
            directory.write(run, state="failed", ended=time.time(), exit_code=code, reason=str(error))
        directory.lock.release()
        raise


def installed_version(package: str) -> str:
    """The version of a package, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def program() -> str:
    """How the user called us."""
    path = Path(sys.argv[0])
    if path.name == "__main__.py":
        return "python -m flagvega"
    return f"python {shlex.quote(sys.argv[0])}" if path.suffix == ".py" else path.name
