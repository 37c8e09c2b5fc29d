"""Runs of the rank program in tests: decided and written as ``action=run`` does it, started by the fork server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from flagvega.actions.call import OPTIONS, Call
from flagvega.actions.decide import Decision, decide, watch_facts
from flagvega.config.command import parse
from flagvega.records import read_json_lines, write_json
from flagvega.run.directory import RunDirectory
from flagvega.run.prepare import prepare
from tests.conftest import ROOT

TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Outcome:
    """A run whose ranks have all ended."""

    directory: RunDirectory
    cpu_s: float

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The metrics, of earlier runs in the directory too."""
        return read_json_lines(self.directory.metrics_file)


class RankError(AssertionError):
    """A rank ended in a way that was not expected; the message has the end of its log."""


class Server:
    """The fork server; ends with the ``with`` block, and with it every rank."""

    def __init__(self) -> None:
        self.cpu_s = 0.0
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.communicate(timeout=30)  # ends its input, and with it the server

    def run(self, directory: Path, config: Mapping[str, Any], mutation: str = "", code: int = 0, stop: int = 0,
            timeout_s: float = TIMEOUT_S) -> Outcome:  # fmt: skip
        """Run an experiment in ``directory``; RankError unless every rank ends with ``code``.

        With ``stop``, the ranks find a request to leave with that code.
        """
        return self.start(decide_on(directory, config), (), mutation, code, stop, timeout_s)

    def start(self, decision: Decision, words: Sequence[str] = (), mutation: str = "", code: int = 0, stop: int = 0,
              timeout_s: float = TIMEOUT_S) -> Outcome:  # fmt: skip
        """Run what is decided; ``words`` are more of the rank program's command line."""
        run = prepare(decision.launch, decision.spec.name, watch_facts(decision), {})
        run.lock.release()
        if stop:
            write_json(run.stop_file, {"code": stop, "reason": "a test"})
        ranks, argv = _ranks(decision, run), ["--run-dir", str(run.root), *words]
        cpu_s = self._fork("backends.megatron.__main__", argv, ranks, mutation, code, timeout_s)
        return Outcome(run, cpu_s)

    def call(self, program: str, words: Sequence[str], log: Path) -> None:
        """Run ``main()`` of a module as a process of its own; RankError unless it ends with code 0."""
        self._fork(program, words, [{"env": {}, "log": str(log)}])

    def _fork(self, program: str, words: Sequence[str], ranks: list[dict[str, Any]], mutation: str = "", code: int = 0,
              timeout_s: float = TIMEOUT_S) -> float:  # fmt: skip
        """Fork processes and wait for their end; the CPU seconds that they took."""
        job = {"program": program, "words": words, "ranks": ranks, "mutation": mutation, "timeout_s": timeout_s}
        process = self._started()
        assert process.stdin is not None
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        answer = self._answer(process)
        self.cpu_s += answer["cpu_s"]
        if answer["timed_out"] or any(found != code for found in answer["codes"]):
            raise RankError(_blame(ranks, answer["codes"], code, answer["timed_out"]))
        return float(answer["cpu_s"])

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-W", "ignore", "-m", "tests.rank.server"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env={**os.environ, **threads, "PYTHONPATH": str(ROOT)},
            )
            assert self._answer(self._process) == {"ready": True}
        return self._process

    @staticmethod
    def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RankError(f"the fork server ended with code {process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def decide_on(directory: Path, config: Mapping[str, Any]) -> Decision:
    """Write ``config`` as the YAML of an experiment in ``directory`` and decide on it as ``action=run`` does."""
    return decide(call_of(directory, config))


def call_of(directory: Path, config: Mapping[str, Any], *words: str) -> Call:
    """Write ``config`` as the YAML of an experiment in ``directory``; the call that a command line for it is."""
    directory.mkdir(parents=True, exist_ok=True)
    conf = directory / "experiment.yaml"
    conf.write_text(yaml.safe_dump({**config, "experiment": _experiment(directory, config)}, sort_keys=False))
    command = parse(["--config-path", str(directory), "--config-name", conf.stem, *words], {"run": ""}, OPTIONS)
    return Call(command, Console(stderr=True, quiet=True))


def _experiment(directory: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    given = dict(config.get("experiment", {}))
    task = {"type": "train", "backend": "megatron"}
    return {"exp_name": directory.name, "exp_dir": str(directory), "task": task} | given


def _ranks(decision: Decision, run: RunDirectory) -> list[dict[str, Any]]:
    """Environment and log of every rank, as the launcher gives them."""
    launch = decision.launch
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    ranks = [
        (
            rank,
            {
                "env": {**node.env, **meeting, "LOCAL_RANK": str(local)},
                "log": str(run.log_file(node.host, rank)),
            },
        )
        for node in launch.job.nodes
        for local, rank in enumerate(launch.ranks[node.node])
    ]
    return [facts for _, facts in sorted(ranks, key=lambda each: each[0])]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _blame(ranks: list[dict[str, Any]], codes: list[int], code: int, timed_out: bool) -> str:
    """The ends of the logs of those that failed first: the others were killed, or lost a peer."""
    wrong = [rank for rank, found in enumerate(codes) if found not in (code, -9)] or list(range(len(codes)))
    logs = [Path(ranks[rank]["log"]).read_text(errors="replace") for rank in wrong]
    own = [i for i, log in enumerate(logs) if "Connection closed by peer" not in log and "Connection reset" not in log]
    shown = own[0] if own else 0
    what = "took too long" if timed_out else f"wanted code {code} of each"
    return f"{what}; codes {codes}; rank {wrong[shown]}:\n{logs[shown][-4000:]}"
