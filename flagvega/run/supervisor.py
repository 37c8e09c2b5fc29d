"""Watches over a run on one host: starts it, passes on requests to stop, judges its end, leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from flagvega.errors import ExitCode
from flagvega.launch.script import AFTER_STOP_SCRIPT, node_script
from flagvega.records import Lines, Owner, write_json
from flagvega.run.directory import Run, RunDirectory
from flagvega.run.processes import TOKEN_ENV, kill_processes
from flagvega.run.verdict import Verdict, describe_death, failures, find_culprit, judge, last_words

POLL_S = 0.1
STOP_CODES = {
    signal.SIGTERM: ExitCode.TERMINATED,
    signal.SIGHUP: ExitCode.TERMINATED,
    signal.SIGINT: ExitCode.INTERRUPTED,
}
QUIET_EVENTS = ("start", "stopped")
"""Events of ranks that are no news to a user."""
OUT_OF_MEMORY = "give that chip fewer layers, or all a smaller micro_batch_size, or recompute activations"


class Supervisor:
    """One run on one host, from its start to its last process. The caller holds the directory's lock."""

    def __init__(self, directory: RunDirectory, say: Callable[[str], None], watch: Callable[[], None]) -> None:
        run = directory.read()
        assert run is not None
        self.run, self.directory, self.say, self.watch = run, directory, say, watch
        self.requests: list[signal.Signals] = []
        self.stop_code: ExitCode | None = None
        self.forced = False
        self.events: dict[int, Lines] = {}
        self.exits: dict[int, dict[str, Any] | None] = dict.fromkeys(run.ranks)
        self.newest_checkpoint: dict[str, Any] | None = None
        self.relayed: set[str] = set()

    def supervise(self, environ: Mapping[str, str]) -> Run:
        """Run it to its end and record that; the returned run says how it ended."""
        self._clear()
        previous = {number: signal.signal(number, self._note) for number in STOP_CODES}
        try:
            agent = self._start(environ)
            while agent.poll() is None and not self.forced:
                self._heed()
                self._read_events()
                self.watch()
                time.sleep(POLL_S)
            kill_processes(self.run.token)
            code = agent.wait()
            self._read_events()
            self.watch()
            return self._end(self._judge(code))
        except BaseException:
            kill_processes(self.run.token)  # a full disk, say, must not leave ranks that nobody watches
            raise
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    # ---- start ----

    def _clear(self) -> None:
        """A run reads nothing of its forerunner's last words and logs."""
        for rank in self.run.ranks:
            self.events[rank] = Lines(self.directory.event_file(rank))
            self.events[rank].skip()
            _put_aside(self.directory.log_file(self.run.host, rank))
        _put_aside(self.directory.agent_log(self.run.host))

    def _start(self, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with self.directory.agent_log(self.run.host).open("wb") as log:
            agent = subprocess.Popen(
                ["bash", str(self.directory.root / node_script(self.run.node))],
                env={**environ, TOKEN_ENV: self.run.token},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.run = self.directory.write(
            self.run, state="running", supervisor=Owner.of(os.getpid()), agent_pid=agent.pid
        )
        return agent

    # ---- requests to stop ----

    def _note(self, number: int, _frame: object) -> None:
        self.requests.append(signal.Signals(number))

    def _heed(self) -> None:
        if not self.requests:
            return
        if self.stop_code is None:
            self._ask_to_stop(self.requests[0])
        elif len(self.requests) > 1 or time.monotonic() > self.deadline:
            why = "asked twice" if len(self.requests) > 1 else f"{self.run.grace_s} s have passed"
            self.say(f"{why}: ending every process of the run now")
            self.forced = True

    def _ask_to_stop(self, request: signal.Signals) -> None:
        self.stop_code = STOP_CODES[request]
        self.deadline = time.monotonic() + self.run.grace_s
        reason = f"{request.name} to the supervisor"
        write_json(self.directory.stop_file, {"code": int(self.stop_code), "reason": reason})
        self.run = self.directory.write(self.run, state="stopping")
        self.say(f"{request.name}: what it began is finished, within {self.run.grace_s} s; once more ends it at once")

    # ---- the end ----

    def _read_events(self) -> None:
        for rank, lines in self.events.items():
            for event in lines.read():
                if event["event"] == "exit":
                    self.exits[rank] = event
                elif event["event"] == "checkpoint":
                    self.newest_checkpoint = event
                elif event["event"] == "ready":
                    self._begin(event)
                elif event["event"] not in QUIET_EVENTS:
                    self._relay(rank, event)

    def _relay(self, rank: int, event: dict[str, Any]) -> None:
        """Tell the user, once for all ranks, what one found worth telling."""
        if event["event"] not in self.relayed:
            self.relayed.add(event["event"])
            seen = "" if event.get("of_run") else f" (seen by {self._name(rank)})"
            note = f"{event['event'].replace('_', ' ')}: {event.get('reason', '')}{seen}"
            self.run = self.directory.write(self.run, notes=(*self.run.notes, note))
            self.say(note)

    def _begin(self, event: dict[str, Any]) -> None:
        """Tell the user, once for all ranks, where the run goes on."""
        step = event.get("step", 0)
        if step and step != self.run.start_step:
            self.run = self.directory.write(self.run, start_step=step)
            self.say(f"found the checkpoint of step {step}: going on")

    def _name(self, rank: int) -> str:
        """A rank, or an instance, with its chip, where that is known."""
        chips, unit = self.run.watch.get("chips", ()), self.run.unit
        return f"{unit} {rank} ({chips[rank]})" if rank < len(chips) else f"{unit} {rank}"

    def _judge(self, agent_code: int) -> Verdict:
        verdict = judge(self.exits)
        if verdict and (agent_code == 0 or verdict.exit_code != ExitCode.DONE):
            return verdict
        if self.forced and self.stop_code is not None:
            return Verdict(self.stop_code, "ended before all ranks had saved and left; " + self._saved())
        return self._explain(agent_code)

    def _saved(self) -> str:
        step = (self.newest_checkpoint or {}).get("step")
        return "no checkpoint was written in this run" if step is None else f"newest checkpoint: step {step}"

    def _explain(self, agent_code: int) -> Verdict:
        """No verdict: say which process died, how, and with what words."""
        agent_log = self.directory.agent_log(self.run.host)
        text = agent_log.read_text(encoding="utf-8", errors="replace")
        culprit = find_culprit(text, self.run.ranks, self.exits)
        if culprit is None:
            reason = f"{self.run.agent} {describe_death(agent_code)}; its log: {agent_log}"
            return Verdict(ExitCode.INTERNAL, reason, last_words(agent_log))
        log = self.directory.log_file(self.run.host, culprit)
        code = failures(text, self.run.ranks).get(culprit, int(ExitCode.INTERNAL))
        told = (self.exits[culprit] or {}).get("reason", "").partition("\n")[0]
        how = f"{describe_death(code)}: {told}" if told else describe_death(code)
        hint = f"\n{OUT_OF_MEMORY}" if "OutOfMemoryError" in told else ""
        return Verdict(ExitCode.INTERNAL, f"{self._name(culprit)} {how}; its log: {log}{hint}", last_words(log))

    def _end(self, verdict: Verdict) -> Run:
        if (script := self.directory.root / AFTER_STOP_SCRIPT).exists():
            with self.directory.agent_log(self.run.host).open("ab") as log:
                subprocess.run(["bash", str(script)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False)
        if verdict.details:
            self.say(verdict.details)
        state = {ExitCode.DONE: "done", ExitCode.TERMINATED: "stopped", ExitCode.INTERRUPTED: "stopped"}
        return self.directory.write(
            self.run,
            state=state.get(ExitCode(verdict.exit_code), "failed"),
            ended=time.time(),
            exit_code=int(verdict.exit_code),
            reason=verdict.reason,
        )


def _put_aside(path: Path) -> None:
    """Keep the last run's file as ``<name>.1``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        path.replace(path.with_name(f"{path.name}.1"))
