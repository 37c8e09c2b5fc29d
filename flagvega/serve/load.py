"""Puts a load on a server with the engine's own benchmark, and tells what came of it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import psutil

from flagvega.errors import FlagvegaError
from flagvega.serve.probe import KEY_ENV
from flagvega.serve.traffic import Answered, Outcome, Targets, Traffic, draw, judge
from flagvega.server import Command

CLIENT_KEY_ENV = "OPENAI_API_KEY"
"""Where benchmarks look for the server's key."""
LEAVE_S = 10.0


class LoadError(FlagvegaError):
    """The benchmark itself failed; single requests that fail are counted instead."""


class Bench:
    """The engine's benchmark as a process that takes one load after another; a context, for it must be ended."""

    def __init__(self, command: Command, log: Path) -> None:
        self.command, self.log = command, log
        self.process: subprocess.Popen[str] | None = None
        self.is_ready = False

    def __enter__(self) -> Bench:
        key = {CLIENT_KEY_ENV: os.environ[KEY_ENV]} if KEY_ENV in os.environ else {}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command.argv, env={**os.environ, **self.command.env, **key}, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
            )  # fmt: skip
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        assert self.process is not None
        _pipe(self.process.stdin).close()  # it ends by itself then
        try:
            self.process.wait(LEAVE_S if error is None else 0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        _pipe(self.process.stdout).close()
        self.process = None

    @property
    def is_running(self) -> bool:
        """Whether it can be asked."""
        return self.process is not None and self.process.poll() is None

    def wait(self) -> None:
        """Until it can take a load: importing the engine takes seconds of the processors that a server shares.

        :raises LoadError: when the benchmark does not start.
        """
        if not self.is_ready:
            found = self._read()
            if "error" in found:
                raise LoadError(f"the engine's benchmark does not start: {found['error']}; its log: {self.log}")
            self.is_ready = True

    def measure(self, url: str, model: str, tokenizer: str, traffic: Traffic, targets: Targets) -> Outcome:
        """Put ``traffic`` on the server at ``url``, which calls its model ``model``, and wait for all answers.

        ``tokenizer`` is the folder of the model. Prompts are random and never the same.

        :raises LoadError: when the benchmark fails, with the end of its log.
        """
        self.wait()
        requests = draw(traffic)
        load = {
            "url": url,
            "model": model,
            "tokenizer": tokenizer,
            "requests": [[each.at_s, each.input_tokens, each.output_tokens] for each in requests],
            "concurrency": traffic.concurrency,
        }
        psutil.cpu_percent()
        found = self._ask(load)
        busy = psutil.cpu_percent() / 100
        if "error" in found:
            raise LoadError(f"the load on {url} was not measured: {found['error']}; its log: {self.log}")
        answers = [Answered(**{**each, "gaps_s": tuple(each["gaps_s"])}) for each in found["answers"]]
        return judge(traffic, requests, answers, targets, found["duration_s"], busy)

    def _ask(self, load: Mapping[str, Any]) -> Mapping[str, Any]:
        assert self.process is not None
        pipe = _pipe(self.process.stdin)
        try:
            pipe.write(json.dumps(load) + "\n")
            pipe.flush()
        except BrokenPipeError:
            return {"error": f"it ended with code {self.process.wait()}"}
        return self._read()

    def _read(self) -> Mapping[str, Any]:
        assert self.process is not None
        line = _pipe(self.process.stdout).readline()
        found: Mapping[str, Any] = json.loads(line) if line else {"error": f"it ended with code {self.process.wait()}"}
        return found


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe
