"""The run directory: which file is what, and the state of a run in ``run.json``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from flagvega.errors import ConfigError, Fault
from flagvega.records import Lines, Lock, Owner, read_json, read_json_lines, write_json

SCHEMA = 1

State = Literal["starting", "running", "stopping", "done", "stopped", "failed"]
FINISHED: tuple[State, ...] = ("done", "stopped", "failed")


@dataclass(frozen=True)
class Run:
    """What is known about a run on one host; the content of ``run.json``."""

    run_id: str
    name: str
    token: str
    """Carried by every process of the run in its environment: how they are found."""
    host: str
    """The host's name in the plan; also its folder in ``logs``."""
    node: int
    num_nodes: int
    ranks: tuple[int, ...]
    """Ranks of the plan on this host, by local index."""
    grace_s: int
    started: float
    """Unix s."""
    state: State = "starting"
    supervisor: Owner | None = None
    """Who starts, then watches over it."""
    agent: str = "torchrun"
    """What starts the ranks."""
    agent_pid: int | None = None
    ended: float | None = None
    exit_code: int | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()
    """What its ranks found worth telling, once each."""
    start_step: int = 0
    """Steps that were done before it started, in earlier runs."""
    watch: dict[str, Any] = field(default_factory=dict)
    """What a watcher needs to turn metrics into shares and times."""
    metrics_offset_bytes: int = 0
    """Where this run's metrics begin; those before are of earlier runs in the directory."""
    schema: int = SCHEMA

    @property
    def unit(self) -> str:
        """What its numbers name: ranks, or the instances of services."""
        return str(self.watch.get("unit", "rank"))

    @property
    def finished(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.state in FINISHED

    @property
    def alive(self) -> bool | None:
        """Whether its supervisor runs; None when that is another host's to know."""
        return self.supervisor.alive if self.supervisor else False


@dataclass(frozen=True)
class RunDirectory:
    """``experiment.exp_dir`` as one host of the job sees it; hosts may share it."""

    root: Path
    node: int = 0

    def _of_node(self, stem: str, suffix: str = "") -> Path:
        return self.root / (f"{stem}-{self.node}{suffix}" if self.node else f"{stem}{suffix}")

    @property
    def run_file(self) -> Path:
        """State, host, pid, start, exit code."""
        return self._of_node("run", ".json")

    @property
    def stop_file(self) -> Path:
        """The request to save and leave, which ranks look at in every step."""
        return self.root / "stop"

    @property
    def supervisor_log(self) -> Path:
        """What a detached supervisor prints."""
        return self.root / "logs" / f"supervisor-{self.node}.log"

    @property
    def metrics_file(self) -> Path:
        """One object a step."""
        return self.root / "metrics.jsonl"

    @property
    def lock(self) -> Lock:
        """Who runs here."""
        return Lock(self._of_node("lock"))

    def event_file(self, rank: int) -> Path:
        """What a rank of the plan reports."""
        return self.root / "events" / f"rank-{rank}.jsonl"

    def log_file(self, host: str, rank: int) -> Path:
        """What a rank prints."""
        return self.log_dir(host) / f"rank-{rank}.log"

    def log_dir(self, host: str) -> Path:
        """Logs of a host."""
        return self.root / "logs" / host.replace("/", "_")

    def agent_log(self, host: str) -> Path:
        """What the host's script and torchrun print."""
        return self.log_dir(host) / "torchrun.log"

    def events(self, rank: int) -> list[dict[str, Any]]:
        """All events of a rank, of former runs too."""
        return read_json_lines(self.event_file(rank))

    def told_ranks(self) -> list[int]:
        """Ranks that have reported something, of all hosts that share the directory."""
        return sorted(int(path.stem[5:]) for path in self.event_file(0).parent.glob("rank-*.jsonl"))

    def metrics(self) -> Lines:
        """The metrics of the run here, to be read as they grow."""
        run = self.read()
        return Lines(self.metrics_file, run.metrics_offset_bytes if run else 0)

    def read(self) -> Run | None:
        """The state of the run here; None when there never was one."""
        try:
            raw = read_json(self.run_file)
        except FileNotFoundError:
            return None
        except json.JSONDecodeError as error:
            raise ConfigError(Fault(f"is damaged: {error}", where=str(self.run_file))) from error
        if raw.get("schema") != SCHEMA:
            fix = "delete it if that run has ended"
            raise ConfigError(Fault("was written by another version of flagvega", str(self.run_file), fix))
        owner = raw.pop("supervisor")
        ranks, notes = tuple(raw.pop("ranks")), tuple(raw.pop("notes", ()))
        known = {name: value for name, value in raw.items() if name in Run.__dataclass_fields__}
        return Run(**known, ranks=ranks, notes=notes, supervisor=Owner(**owner) if owner else None)

    def write(self, run: Run, **changes: Any) -> Run:
        """Record a run with some fields changed, and return it."""
        run = replace(run, **changes)
        write_json(self.run_file, asdict(run))
        return run


def find_runs(root: Path) -> list[RunDirectory]:
    """The runs of all hosts that have one in this directory, host 0 first."""
    nodes = [0] if (root / "run.json").exists() else []
    nodes += sorted(int(path.stem[4:]) for path in root.glob("run-*.json") if path.stem[4:].isdecimal())
    return [RunDirectory(root, node) for node in nodes]
