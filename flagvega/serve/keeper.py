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
from collections.abc import Callable, Sequence
from pathlib import Path

from flagvega.errors import ExitCode
from flagvega.records import read_json, write_json
from flagvega.run.beats import BEAT_S
from flagvega.serve.hosts import Far, Host, lost_event, make_beat, serve_file
from flagvega.serve.kept import DRAIN_S, POLL_S, Kept, drain, forget_questions
from flagvega.serve.observer import Observer


class Keeper:
    """All instances of a host; on the run's first host, the gateway or the batch too."""

    def __init__(self, run_dir: Path, ranks: Sequence[int], logs: Path, position: int = 0) -> None:
        self.run_dir, self.stop_file = run_dir, run_dir / "stop"
        read = read_json(run_dir / serve_file(position))
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
        self.trouble = ""
        """Why there is no going on, whatever its instances do."""
        self.is_first = position == 0
        self.hosts = [
            Host(run_dir, i, name, [each for each in read.get("others", ()) if each["position"] == i])
            for i, name in enumerate(read.get("hosts", []))
            if i != position and (self.is_first or i == 0)
        ]
        """The others, as far as it has to do with them; the first one has the gateway."""
        self.given_up: set[int] = set()
        self.looked = time.monotonic()
        self.beat = make_beat(run_dir, position) if self.hosts else None
        self.observer = self._observer(read.get("name", run_dir.name), gateway and gateway["url"])

    def _observer(self, name: str, url: str | None) -> Observer | None:
        """The first host's tells of all."""
        shown = sorted(self._everywhere(), key=lambda each: int(each.facts["id"]))
        return Observer(self.run_dir, name, shown, url) if self.is_first else None

    def run(self) -> int:
        """Serve until asked to stop, or until there is no going on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(self, "asked", int(ExitCode.TERMINATED)))
        self._clear()
        for each in self._all():
            each.start()
        if self.beat:
            self.beat.start()
        if self.observer:
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
                if each.state != "failed":
                    each.look()
            self._look_around()
            if self.gateway and self.gateway.state == "ready" and not self.has_endpoint:
                self.has_endpoint = True
                self._tell("endpoint", f"{self.gateway.facts['url']}/v1, in front of all instances")
            if not self._can_go_on():
                return self._leave(int(ExitCode.INTERNAL), "")
            code = self.batch.poll() if self.batch else None
            if code == 0:
                return self._leave(int(ExitCode.DONE), "")
            if code is not None:
                self.trouble = f"the batch ended with code {code}; its log: {self.batch_log}"
            time.sleep(POLL_S)

    def _all(self) -> list[Kept]:
        """The gateway last."""
        return [*self.instances, *([self.gateway] if self.gateway else [])]

    def _everywhere(self) -> list[Kept | Far]:
        """Instances of all hosts, as far as they are known here."""
        return [*self.instances, *(each for host in self.hosts for each in host.instances)]

    # ---- whether it goes on ----

    def _look_around(self) -> None:
        """How the other hosts do; the folder that tells may be slow, so not every time."""
        if not self.hosts or time.monotonic() - self.looked < BEAT_S:
            return
        self.looked = time.monotonic()
        for host in self.hosts:
            known = host.trouble
            host.look()
            if host.trouble and not known:
                self._lose(host)
            elif known and not host.trouble:
                self.given_up -= {each.facts["id"] for each in host.instances}
                self._tell(f"host_{host.name}_back", self._left())

    def _lose(self, host: Host) -> None:
        """A host is gone."""
        if self.is_first:
            self.given_up |= {each.facts["id"] for each in host.instances}
            self._tell(f"host_{host.name}_lost", f"{host.trouble}; {self._left()}")
        else:
            self.trouble = f"the host {host.name}, where the gateway is, is gone: {host.trouble}"

    def _can_go_on(self) -> bool:
        """Whether enough is left: on several hosts any instance, on one, and for a batch, all.

        Those that are lost are told once each.
        """
        if self.gateway and self.gateway.state == "failed":
            self.trouble = f"the gateway: {self.gateway.trouble}; its log: {self.gateway.log_file}"
        lost = [each for each in self._everywhere() if each.state == "failed"]
        if self.hosts and self.batch and lost and not self.trouble:
            self.trouble = f"the batch waits for an instance that is lost: {lost[0].trouble}"
        if self.trouble or not self.hosts:
            return not (self.trouble or lost)
        for each in lost:
            if (number := each.facts["id"]) not in self.given_up:
                self.given_up.add(number)
                self._tell(lost_event(number), f"{each.trouble}; {self._left()}")
        return len(lost) < len(self._everywhere())

    def _tell(self, event: str, reason: str) -> None:
        """Record an event of the run, not of one instance."""
        self.instances[0].tell(event, reason=reason, of_run=True)

    def _left(self) -> str:
        known = self._everywhere()
        where = "" if self.is_first else " of this host"
        return f"{sum(each.state != 'failed' for each in known)} of {len(known)} instances{where} are left"

    # ---- the end ----

    def _leave(self, code: int, reason: str) -> int:
        if self.batch and self.batch.poll() is None:
            self.batch.kill()  # what has no result is asked again another time
            self.batch.wait()
        if self.is_first and self.hosts and not self.stop_file.exists():
            theirs = ExitCode.TERMINATED if code == ExitCode.INTERNAL else code
            write_json(self.stop_file, {"code": int(theirs), "reason": reason or "the first host has ended"})
        if self.gateway:
            drain([self.gateway])  # before the instances that it still waits for
        elif not self.is_first and code != ExitCode.INTERNAL:
            self._await(lambda: self.hosts[0].has_drained())
        drain(self.instances)
        if self.is_first:
            self._await(lambda: all(each.has_ended for host in self.hosts for each in host.instances))
        self._clear()
        for each in self.instances:
            failed = each.state == "failed" or bool(self.trouble)
            its = code if failed or code != ExitCode.INTERNAL else int(ExitCode.TERMINATED)
            each.tell("exit", code=its, reason=each.trouble if each.state == "failed" else self.trouble or reason)
        if self.observer:
            word = "failed" if code == ExitCode.INTERNAL else "done" if code == ExitCode.DONE else "stopped"
            self.observer.close(word)
        if self.beat:
            self.beat.stop()
        return 0 if code != ExitCode.INTERNAL else code

    def _await(self, has_come: Callable[[], bool]) -> None:
        """Until other hosts are as far, or gone; not for ever."""
        deadline = time.monotonic() + DRAIN_S
        while time.monotonic() < deadline and not has_come() and not all(host.trouble for host in self.hosts):
            time.sleep(POLL_S)
            for host in self.hosts:
                host.look()

    def _clear(self) -> None:
        """Remove what instances leave to each other."""
        for folder in self.scratch:
            shutil.rmtree(folder, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Keep the instances of the run in ``--run-dir``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--host", type=int, default=0, help="which of the run's hosts this is, in their order")
    given = parser.parse_args(argv)
    ranks = [int(rank) for rank in os.environ["FLAGVEGA_RANKS"].split()]
    logs = Path(os.environ["FLAGVEGA_LOGS"])
    print(f"keeping {len(ranks)} instances on {socket.gethostname()}", flush=True)
    code = Keeper(given.run_dir, ranks, logs, given.host).run()
    forget_questions()
    return code


if __name__ == "__main__":
    sys.stdout.flush()
    os._exit(main())  # a question that still waits must not keep us
