"""Keeps the instances of a host, and the gateway: starts them, knows when they answer, starts again, ends them.

``python -P -m flagvega.serve.keeper --run-dir DIR``: each instance is a rank of the run, with a log and events of its
own. It counts as ready when its ``/health`` and one completion answer; a process that ends by itself has failed,
whatever its exit code. SIGTERM, or the run's stop file, drains: vLLM finishes what it began, then leaves.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flagvega.errors import ExitCode
from flagvega.records import append_json_line, read_json
from flagvega.serve.observer import Observer
from flagvega.serve.probe import KEY_ENV, find_trouble, is_healthy
from flagvega.serve.records import is_ejected

POLL_S = 0.2
DRAIN_S = 60.0
"""Between SIGTERM and SIGKILL: more than an engine gives what it is answering (its own limit is in ``serve.yaml``)."""
MAX_RESTARTS = 3
"""Of an instance that had been ready; one that never was is not tried again."""
MAX_PROBES = 64
HANG_S = 120.0
LOOKS = 6
"""Looks at an instance within the time after which a process counts as hanging."""
SERVE_FILE = "job/serve.json"

_threads = ThreadPoolExecutor(max_workers=MAX_PROBES)

State = Literal["starting", "ready", "failed"]


@dataclass
class Kept:
    """One instance."""

    facts: Mapping[str, Any]
    """Its entry in ``job/serve.json``."""
    event_file: Path
    log_file: Path
    process: subprocess.Popen[bytes] | None = None
    state: State = "starting"
    started: float = 0.0
    restarts: int = 0
    trouble: str = ""
    probe: Future[str] | None = None
    pulse: Future[bool] | None = None
    felt: float = 0.0
    alive: float = 0.0
    """When it was last well."""

    def tell(self, event: str, **facts: Any) -> None:
        """Record an event of the instance."""
        append_json_line(self.event_file, {"time": time.time(), "event": event, **facts})

    def start(self) -> None:
        """Start, or start again."""
        env = {**os.environ, **self.facts["env"]}
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                self.facts["argv"], env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self.state, self.started, self.trouble = "starting", time.monotonic(), ""
        self.probe = self.pulse = None
        self.tell("start", pid=self.process.pid)

    def look(self) -> None:
        """See how it does; it may become ready, be started again, or fail."""
        assert self.process is not None
        code = self.process.poll()
        if code is not None:
            self._lost(f"it ended by itself, with code {code}")
        elif self.state == "starting":
            self._ask()
        elif self.state == "ready":
            self._feel()

    def _ask(self) -> None:
        """Whether it answers by now; the question waits in a thread, since a first completion may take minutes."""
        waited_s = time.monotonic() - self.started
        if self.probe is None:
            key_env = self.facts.get("key_env", KEY_ENV)
            self.probe = _threads.submit(find_trouble, self.facts["url"], self.facts["model"], key_env)
        elif self.probe.done():
            self.trouble, self.probe = self.probe.result(), None
            if not self.trouble:
                self.state, self.alive = "ready", time.monotonic()
                reason = f"{self.facts['model']} at {self.facts['url']}/v1"
                self.tell("serving", reason=reason, seconds=round(waited_s, 1))
            elif waited_s > self.facts["start_s"]:
                self._lost(f"no answer within {self.facts['start_s']} s: {self.trouble}")

    def _feel(self) -> None:
        """Whether it still answers: a process that hangs does not end."""
        now, hang_s = time.monotonic(), self.facts.get("hang_s", HANG_S)
        if self.pulse is None and now - self.felt > hang_s / LOOKS:
            self.pulse = _threads.submit(self._is_well)
            self.felt = now
        elif self.pulse is not None and self.pulse.done():
            self.alive = now if self.pulse.result() else self.alive
            self.pulse = None
            if now - self.alive > hang_s:
                self._lost(f"it hangs: for {hang_s:g} s it did not answer /health, or gave the gateway no token")

    def _is_well(self) -> bool:
        """Whether its server answers, and its engine too, as far as a gateway knows."""
        run_dir = self.event_file.parents[1]
        return is_healthy(self.facts["url"]) and not is_ejected(run_dir, self.facts.get("id"))

    def _lost(self, reason: str) -> None:
        was_ready = self.state == "ready"
        self.end()
        if was_ready and self.restarts < MAX_RESTARTS:
            self.restarts += 1
            self.tell("restart", reason=f"{reason}; started again ({self.restarts} of {MAX_RESTARTS})")
            self.start()
        else:
            self.state = "failed"
            self.trouble = reason

    @property
    def is_running(self) -> bool:
        """Whether its process has not ended."""
        return self.process is not None and self.process.poll() is None

    def ask_to_end(self) -> None:
        """SIGTERM: it finishes what it began."""
        if self.process is not None and self.is_running:
            self.process.terminate()

    def end(self) -> None:
        """End it now, with the processes that it started, even where it has ended before them."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Keeper:
    """All instances of a host."""

    def __init__(self, run_dir: Path, ranks: Sequence[int], logs: Path) -> None:
        self.stop_file = run_dir / "stop"
        read = read_json(run_dir / SERVE_FILE)
        self.instances = [
            Kept(entry, run_dir / "events" / f"rank-{rank}.jsonl", logs / f"rank-{rank}.log")
            for rank, entry in zip(ranks, read["instances"], strict=True)
        ]
        self.batch_argv, self.batch_log = read.get("batch"), logs / "batch.log"
        self.batch: subprocess.Popen[bytes] | None = None
        gateway = read.get("gateway")
        self.gateway = gateway and Kept(gateway, run_dir / "events" / "gateway.jsonl", logs / "gateway.log")
        self.scratch = [run_dir / name for name in read.get("scratch", [])]
        self.asked: int | None = None
        self.has_endpoint = False
        url = gateway and gateway["url"]
        self.observer = Observer(run_dir, read.get("name", run_dir.name), self.instances, url)

    def run(self) -> int:
        """Serve until asked to stop, or until one cannot be kept."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(self, "asked", int(ExitCode.TERMINATED)))
        self._clear()
        for each in self._all():
            each.start()
        self.observer.start()
        if self.batch_argv:
            with self.batch_log.open("wb") as log:
                self.batch = subprocess.Popen(self.batch_argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        while True:
            if self.stop_file.exists() and self.asked is None:
                self.asked = int(read_json(self.stop_file)["code"])
            if self.asked is not None:
                return self._leave(self.asked, "asked to stop")
            for each in self._all():
                each.look()
            if self.gateway and self.gateway.state == "ready" and not self.has_endpoint:
                self.has_endpoint = True
                self.instances[0].tell("endpoint", reason=f"{self.gateway.facts['url']}/v1, in front of all instances")
            if any(each.state == "failed" for each in self._all()):
                return self._leave(int(ExitCode.INTERNAL), "")
            code = self.batch.poll() if self.batch else None
            if code == 0:
                return self._leave(int(ExitCode.DONE), "")
            if code is not None:
                self.instances[0].state = "failed"
                self.instances[0].trouble = f"the batch ended with code {code}; its log: {self.batch_log}"
            time.sleep(POLL_S)

    def _all(self) -> list[Kept]:
        """The gateway last."""
        return [*self.instances, *([self.gateway] if self.gateway else [])]

    def _leave(self, code: int, reason: str) -> int:
        if self.batch and self.batch.poll() is None:
            self.batch.kill()  # what has no result is asked again another time
            self.batch.wait()
        if self.gateway:
            _drain([self.gateway])  # before the instances that it still waits for
            if self.gateway.state == "failed":
                reason = f"the gateway: {self.gateway.trouble}; its log: {self.gateway.log_file}"
        _drain(self.instances)
        self._clear()
        for each in self.instances:
            failed = each.state == "failed" or bool(self.gateway and self.gateway.state == "failed")
            its = code if failed or code != ExitCode.INTERNAL else int(ExitCode.TERMINATED)
            each.tell("exit", code=its, reason=each.trouble if each.state == "failed" else reason)
        self.observer.close("failed" if code == ExitCode.INTERNAL else "done" if code == ExitCode.DONE else "stopped")
        return 0 if code != ExitCode.INTERNAL else code

    def _clear(self) -> None:
        """Remove what instances leave to each other."""
        for folder in self.scratch:
            shutil.rmtree(folder, ignore_errors=True)


def _drain(kept: Sequence[Kept]) -> None:
    """Ask them to end, and see to it that they do."""
    for each in kept:
        each.ask_to_end()
    deadline = time.monotonic() + DRAIN_S
    while time.monotonic() < deadline and any(each.is_running for each in kept):
        time.sleep(POLL_S)
    for each in kept:
        each.end()


def main(argv: Sequence[str] | None = None) -> int:
    """Keep the instances of the run in ``--run-dir``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True)
    run_dir = parser.parse_args(argv).run_dir
    ranks = [int(rank) for rank in os.environ["FLAGVEGA_RANKS"].split()]
    logs = Path(os.environ["FLAGVEGA_LOGS"])
    print(f"keeping {len(ranks)} instances on {socket.gethostname()}", flush=True)
    code = Keeper(run_dir, ranks, logs).run()
    _threads.shutdown(wait=False, cancel_futures=True)
    return code


if __name__ == "__main__":
    sys.stdout.flush()
    os._exit(main())  # a question that still waits must not keep us
