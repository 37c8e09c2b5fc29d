"""A search seen from outside: what it does now, and how it is stopped."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from flagvega.errors import Fault, PreflightError
from flagvega.records import Lock, read_json, write_json
from flagvega.run.directory import RunDirectory
from flagvega.run.processes import kill_processes
from flagvega.tune.study import Study, Trial, trials_of

FOLDER = "auto_tuner"
"""In the run directory."""
STOP_S = 30.0
"""A tuner that is asked to end has ended its trial by then."""
POLL_S = 0.1

State = Literal["running", "done", "stopped", "failed", "died"]


@dataclass(frozen=True)
class Search:
    """What a tuner tells of itself; the content of ``search.json``."""

    name: str
    base_key: str
    """Of the trials that are this question's."""
    unit: str
    """Whose seconds are made small."""
    num_candidates: int
    state: State = "running"
    reason: str = ""
    """Why it is over."""
    started: float = 0.0
    """Unix s."""
    ended: float | None = None


@dataclass(frozen=True)
class SearchFolder:
    """``<exp_dir>/auto_tuner``."""

    root: Path

    @property
    def lock(self) -> Lock:
        """Who searches here."""
        return Lock(self.root / "lock")

    def write(self, search: Search, **changes: Any) -> Search:
        """Record a search with some fields changed, and return it."""
        search = replace(search, **changes)
        write_json(self.root / "search.json", asdict(search))
        return search

    def read(self) -> Search | None:
        """The last search here, None when there never was one; ``died`` where nobody is left to record its end."""
        try:
            search = Search(**read_json(self.root / "search.json"))
        except FileNotFoundError:
            return None
        owner = self.lock.owner()
        is_dead = search.state == "running" and (owner is None or owner.alive is False)
        return replace(search, state="died") if is_dead else search

    def trials(self, search: Search) -> list[Trial]:
        """Those of a search, with the former ones that count."""
        return trials_of(Study.open(self.root).trials, search.base_key)

    def runs(self) -> list[Path]:
        """The folders of trials, in their order; that of a running one is the last."""
        return sorted(path for path in (self.root / "trials").glob("[0-9]*") if path.is_dir())

    def running(self) -> list[Path]:
        """Of those that no record is of yet."""
        done = {trial.number for trial in Study.open(self.root).trials}
        return [path for path in self.runs() if int(path.name) not in done]

    def stop(self, force: bool, say: Callable[[str], None]) -> bool:
        """End a search and its trial; False when nobody searches here. PreflightError when it is another's."""
        owner = self.lock.owner()
        if owner is None or owner.alive is False:
            self._clear()
            return False
        if owner.alive is None:
            raise PreflightError(Fault(f"the search is {owner}", str(self.root), "stop it there"))
        try:
            os.kill(owner.pid, signal.SIGTERM)
            say("asked the search to end with its trial")
            deadline = time.monotonic() + (0.0 if force else STOP_S)
            while owner.alive and time.monotonic() < deadline:
                time.sleep(POLL_S)
            if owner.alive:
                os.kill(owner.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        except PermissionError as error:
            what, fix = "the search is another user's", "ask that user, or be root"
            raise PreflightError(Fault(what, str(self.root), fix)) from error
        self._clear()
        search = self.read()
        if search and search.state == "died":
            self.write(search, state="stopped", ended=time.time(), reason="stopped by action=stop")
        return True

    def _clear(self) -> None:
        """End every process of a trial that a tuner left behind."""
        for path in self.running():
            run = RunDirectory(path).read()
            if run is not None and not run.finished:
                with suppress(PermissionError):
                    kill_processes(run.token)


def read_search(run_dir: Path) -> tuple[SearchFolder, Search] | None:
    """The search of a run directory, if there is one."""
    folder = SearchFolder(run_dir / FOLDER)
    search = folder.read()
    return None if search is None else (folder, search)
