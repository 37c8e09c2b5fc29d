"""An instance that is kept: started, asked whether it answers, started again when it dies or hangs, ended for good."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flagvega.records import append_json_line
from flagvega.serve.probe import KEY_ENV, find_trouble, is_healthy
from flagvega.serve.records import is_ejected

POLL_S = 0.2
DRAIN_S = 60.0
"""Between SIGTERM and SIGKILL: more than an engine gives what it is answering (its own limit is in ``serve.yaml``)."""
LOADING_S = 3.0
"""The same for one that does not serve yet: it has nothing to finish, and vLLM hears no SIGTERM while it loads."""
MAX_RESTARTS = 3
"""Of an instance that had been ready; one that never was is not tried again."""
MAX_PROBES = 64
HANG_S = 120.0
LOOKS = 6
"""Looks at an instance within the time after which a process counts as hanging."""

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
        has_served = self.state == "ready" or self.restarts > 0
        self.end()
        if has_served and self.restarts < MAX_RESTARTS:
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


def drain(kept: Sequence[Kept]) -> None:
    """Ask them to end, and see to it that they do."""
    for each in kept:
        each.ask_to_end()
    begun = time.monotonic()
    while any(each.is_running for each in kept):
        time.sleep(POLL_S)
        for each in kept:
            if time.monotonic() - begun > (LOADING_S if each.state == "starting" else DRAIN_S):
                each.end()
    for each in kept:
        each.end()


def forget_questions() -> None:
    """None that still waits for an answer must keep the process."""
    _threads.shutdown(wait=False, cancel_futures=True)
