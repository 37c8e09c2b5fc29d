"""The files that a run is: what dryrun prints and run executes, to the letter."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flagvega.config.redact import is_secret
from flagvega.errors import Fault
from flagvega.launch.rendezvous import Rendezvous
from flagvega.launch.torchrun import torchrun_argv
from flagvega.layout.job import Job

RANK_SCRIPT = "job/rank.sh"
AFTER_STOP_SCRIPT = "job/after-stop.sh"

RANK_TEXT = """\
#!/usr/bin/env bash
# Sends what a rank prints to the rank's own log, then becomes the rank.
ranks=($FLAGVEGA_RANKS)
exec "$@" >>"$FLAGVEGA_LOGS/rank-${ranks[LOCAL_RANK]}.log" 2>&1
"""


@dataclass(frozen=True)
class Launch:
    """A job and where it is to run: everything that starting it needs."""

    run_dir: Path
    """Absolute."""
    directory: Path
    """Where the commands run: where the user called us."""
    job: Job
    ranks: tuple[tuple[int, ...], ...]
    """Per host of the job, in order, the plan's ranks by local index."""
    rendezvous: Rendezvous
    grace_s: int = 120
    """How long ranks may take to save and leave when asked to stop."""
    before_start: str = ""
    after_stop: str = ""


def node_script(node: int) -> str:
    """Path, in the run directory, of what the job's host ``node`` executes."""
    return f"job/node-{node}.sh"


def log_dir(run_dir: Path, host: str) -> Path:
    """Where the ranks of a host log."""
    return run_dir / "logs" / host.replace("/", "_")


def check_launch(launch: Launch) -> list[Fault]:
    """Faults of what no environment can carry."""
    env = {name: value for node in launch.job.nodes for name, value in node.env.items()}
    what = "an environment variable cannot hold a NUL character"
    return [Fault(what, f"experiment.envs.{name}") for name, value in env.items() if "\0" in value]


def render(launch: Launch, node: int | None = None) -> dict[str, str]:
    """Text of every file of the job by its path in the run directory; of one of its hosts, only what that host runs.

    Hosts that share the directory may have their programs in unlike places: each writes its own part.
    """
    nodes = range(len(launch.job.nodes)) if node is None else (node,)
    values = dict(launch.job.files)
    for each in nodes:
        values |= launch.job.nodes[each].files
    files = {name: json.dumps(value, indent=2, ensure_ascii=False) + "\n" for name, value in values.items()}
    files |= {node_script(each): _node_text(launch, each) for each in nodes}
    if not all(node.is_launcher for node in launch.job.nodes):
        files[RANK_SCRIPT] = RANK_TEXT
    if launch.after_stop:
        files[AFTER_STOP_SCRIPT] = _after_stop_text(launch)
    return files


def secrets(launch: Launch, node: int) -> dict[str, str]:
    """Variables of a host that are handed on from process to process, never written."""
    return {name: value for name, value in launch.job.nodes[node].env.items() if is_secret(name)}


def command(launch: Launch, node: int) -> list[str]:
    """The argument list that the job's host ``node`` ends up in."""
    job = launch.job.nodes[node]
    if job.is_launcher:
        return list(job.argv)
    rank = ["bash", str(launch.run_dir / RANK_SCRIPT), *job.argv]
    where = str(log_dir(launch.run_dir, job.host) / "torchrun")
    return torchrun_argv(node, job.num_ranks, launch.rendezvous, where, rank)


def _node_text(launch: Launch, node: int) -> str:
    job = launch.job.nodes[node]
    ours = {
        "FLAGVEGA_RANKS": " ".join(map(str, launch.ranks[node])),
        "FLAGVEGA_LOGS": str(log_dir(launch.run_dir, job.host)),
        # The supervisor watches over restarts; a store that outlives its ranks only confuses the next ones.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        # torchrun must not kill ranks that are still saving.
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(launch.grace_s + 30),
    }
    lines = [
        "#!/usr/bin/env bash",
        f"# What host {job.node} ({_one_line(job.host)}) executes. Written by flagvega: change the YAML instead.",
        f"cd -- {shlex.quote(str(launch.directory))} || exit",
        *_exports({"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", **job.env}),
        *_raw(launch.before_start, "experiment.cmds.before_start"),
        *_exports(ours),
        "exec " + _command_lines(command(launch, node)),
    ]
    return "\n".join(lines) + "\n"


def _after_stop_text(launch: Launch) -> str:
    lines = [
        "#!/usr/bin/env bash",
        f"cd -- {shlex.quote(str(launch.directory))} || exit",
        *_raw(launch.after_stop, "experiment.cmds.after_stop"),
    ]
    return "\n".join(lines) + "\n"


def _exports(env: Mapping[str, str]) -> list[str]:
    return [
        f"# {name} comes from the environment: its value is never written"
        if is_secret(name)
        else f"export {name}={shlex.quote(value)}"
        for name, value in env.items()
    ]


def _raw(text: str, source: str) -> list[str]:
    return [f"# {source}, as written there", text] if text.strip() else []


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _command_lines(argv: list[str]) -> str:
    """One argument a line, except that a flag of one letter stays with what precedes it."""
    first, *rest = (shlex.quote(word) for word in argv)
    return " \\\n    ".join([first, *rest])
