"""The other hosts of a serving run, as the folder that they share tells of them and of their instances."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from flagvega.records import Lines
from flagvega.run.beats import SILENCE_S, Beat, Listener
from flagvega.run.directory import RunDirectory
from flagvega.serve.kept import State
from flagvega.serve.records import FOLDER, read_gateway

SERVE_FILE: Final = "job/serve.json"
GONE_S: Final = 3.0
"""A host whose run is said to have ended is believed to be gone when it is silent for so long as well."""
HEAR_S: Final = 10.0
"""A host that is there is heard of within this."""
PAUSE_S: Final = 10.0
"""Whoever has not looked for so long was held up, as the others may have been: by the folder, say."""


def serve_file(position: int) -> str:
    """What the keeper of the run's ``position``-th host reads."""
    return f"job/serve-{position}.json" if position else SERVE_FILE


def make_beat(run_dir: Path, position: int) -> Beat:
    """By which the others hear that the keeper of a host is there."""
    file = _beat_file(run_dir, position)
    file.parent.mkdir(exist_ok=True)
    file.touch()
    return Beat(file)


def lost_event(instance: int) -> str:
    """Name of the event that an instance is given up while the others go on."""
    return f"instance_{instance}_lost"


class Far:
    """An instance on another host, by what its keeper writes down."""

    def __init__(self, facts: Mapping[str, Any], events: Path, since: float) -> None:
        self.facts = facts
        self._events = Lines(events)
        self.begin(since)

    def begin(self, since: float) -> None:
        """What happens from then on, by its host's clock, is of its present run."""
        self.state: State = "starting"
        self.trouble = ""
        self.restarts = 0
        self.has_ended = False
        self._since = since

    def look(self) -> None:
        """Read what is new."""
        for event in self._events.read():
            if event["time"] >= self._since:
                self._note(event["event"], str(event.get("reason", "")).partition("\n")[0])

    def lose(self, reason: str) -> None:
        """It is not kept any more."""
        self.state, self.trouble, self.has_ended = "failed", reason, True

    def _note(self, name: str, reason: str) -> None:
        if name == "start":
            self.state, self.has_ended = "starting", False  # its host may be back before it was missed
        elif name == "serving":
            self.state, self.trouble = "ready", ""
        elif name == "restart":
            self.restarts += 1
        elif name == "exit":
            self.lose(self.trouble or reason)
        elif name == lost_event(self.facts["id"]):
            self.state, self.trouble = "failed", reason


class Host:
    """Another host of the run."""

    def __init__(self, run_dir: Path, position: int, name: str, instances: Sequence[Mapping[str, Any]] = ()) -> None:
        self.name, self.trouble = name, ""
        self._directory = RunDirectory(run_dir, position)
        self._listener = Listener(_beat_file(run_dir, position))
        self._began = self._looked = time.monotonic()
        run = self._directory.read()
        self._started = run.started if run else time.time()
        self._was_running = run is not None and not run.finished
        """Else what is there is of a former run, for all that is known."""
        events = self._directory.event_file
        self.instances = [Far(facts, events(facts["id"]), self._started) for facts in instances]

    def look(self) -> None:
        """See whether it is there, and how its instances do."""
        if time.monotonic() - self._looked > PAUSE_S:
            self._listener.rest()
        self._looked = time.monotonic()
        if not self.trouble:
            self.trouble = self._find_trouble()
        elif self._is_heard() and (run := self._directory.read()) and not run.finished:
            self.trouble, self._started = "", run.started  # somebody started it again
            for each in self.instances:
                each.begin(run.started)
        for each in self.instances:
            if self.trouble:
                each.lose(self.trouble)
            else:
                each.look()

    def _is_heard(self) -> bool:
        silent_s = self._listener.silent_s()
        return silent_s is not None and silent_s < GONE_S

    def _find_trouble(self) -> str:
        silent_s = self._listener.silent_s()
        if silent_s is None:
            silent_s = time.monotonic() - self._began
        else:
            self._was_running = True
        if silent_s > GONE_S and self._was_running and (run := self._directory.read()) and run.finished:
            return run.reason or f"its run is {run.state}"
        return f"it has not been heard of for {SILENCE_S:.0f} s" if silent_s > SILENCE_S else ""

    def has_drained(self) -> bool:
        """Whether the gateway, which is there, has answered all that it began."""
        status = read_gateway(self._directory.root)
        return status is not None and status["state"] == "ended" and status["time"] >= self._started


def is_first_running(run_dir: Path) -> bool:
    """Whether the first host serves, so that others may join it again; where it might, it is listened for."""
    run = RunDirectory(run_dir).read()
    if run is None or run.state != "running":
        return False
    listener, deadline = Listener(_beat_file(run_dir, 0)), time.monotonic() + HEAR_S
    while listener.silent_s() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return listener.silent_s() is not None


def _beat_file(run_dir: Path, position: int) -> Path:
    return run_dir / FOLDER / f"beat-{position}"
