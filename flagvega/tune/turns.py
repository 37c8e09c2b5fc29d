"""How the hosts of a search run the same trials: host 0 searches, the others read in the shared folder what is next."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from flagvega.errors import Fault, PreflightError
from flagvega.records import read_json, write_json
from flagvega.run.beats import SILENCE_S, Beat, Listener
from flagvega.tune.measure import Limits
from flagvega.tune.trial import LEAVE_S

TURN_FILE = "turn-{}.json"
"""In the folder of the search, one for each group of hosts that runs trials together."""
LEFT_FILE = "left-{}"
"""Beside it: one of these hosts has left."""
PATIENCE_S = 600.0
"""So long the others wait for host 0 to begin."""
POLL_S = 0.1


@dataclass(frozen=True)
class Turn:
    """What all hosts do now."""

    session: str
    number: int = 0
    """Of turns in this search."""
    kind: Literal["wait", "trial", "best", "over"] = "wait"
    folder: str = ""
    """Of the trial, in the folder of the search."""
    point: Mapping[str, Any] | None = None
    """The record of the candidate."""
    limits: Mapping[str, Any] | None = None
    reason: str = ""
    """Why it is over."""


class Leader:
    """Tells the other hosts what is next; a context manager, at whose end it is over for them."""

    def __init__(self, root: Path, group: int) -> None:
        self._file, self._left = root / TURN_FILE.format(group), root / LEFT_FILE.format(group)
        self._turn = Turn(secrets.token_hex(8))
        self._beat = Beat(self._file)
        self.reason = "host 0 has ended"

    def __enter__(self) -> Leader:
        self._left.unlink(missing_ok=True)
        write_json(self._file, asdict(self._turn))
        self._beat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._beat.stop()
        self._tell(Turn(self._turn.session, kind="over", reason=self.reason))

    @property
    def is_left(self) -> bool:
        """Whether a host has told that it has left."""
        return self._left.exists()

    def trial(self, folder: Path, point: Mapping[str, Any], limits: Limits) -> None:
        """All hosts run a candidate now."""
        where = str(folder.relative_to(self._file.parent))
        self._tell(Turn(self._turn.session, kind="trial", folder=where, point=point, limits=asdict(limits)))

    def best(self, point: Mapping[str, Any]) -> None:
        """All hosts run the best now, and no more after it."""
        self._tell(Turn(self._turn.session, kind="best", point=point))

    def _tell(self, turn: Turn) -> None:
        self._turn = Turn(**{**asdict(turn), "number": self._turn.number + 1})
        write_json(self._file, asdict(self._turn))


class Follower:
    """Reads what is next."""

    def __init__(self, root: Path, group: int) -> None:
        self._file, self._left = root / TURN_FILE.format(group), root / LEFT_FILE.format(group)
        self._seen: tuple[str, int] | None = None
        self._leader = Listener(self._file)
        self._began = time.monotonic()
        self._passed: float | None = None
        """When host 0 went on without this one."""

    def next(self) -> Turn:
        """The next turn that is no `wait`; PreflightError when host 0 is gone, or never comes."""
        while True:
            turn = self._look()
            if turn is not None and (turn.session, turn.number) != self._seen:
                self._seen = turn.session, turn.number
                if turn.kind != "wait":
                    return turn
            time.sleep(POLL_S)

    def leave(self) -> None:
        """Tell host 0 that it must do without this one."""
        self._left.touch()

    def _look(self) -> Turn | None:
        silent_s = self._leader.silent_s()
        if silent_s is None:
            if time.monotonic() - self._began > PATIENCE_S:
                fix = "type the same command on every host, and give all the same, shared experiment.exp_dir"
                raise PreflightError(Fault("host 0 does not search here", str(self._file.parent), fix))
            return None
        if silent_s > SILENCE_S:
            raise PreflightError(Fault(f"host 0 has not been heard of for {SILENCE_S:.0f} s", str(self._file)))
        return Turn(**read_json(self._file))

    def is_on(self) -> bool:
        """Whether the turn still is what host 0 does, or was until a moment ago; PreflightError when host 0 is gone."""
        now, turn = time.monotonic(), self._look()
        if turn is not None and (turn.session, turn.number) != self._seen:
            self._passed = self._passed or now
            return now - self._passed < LEAVE_S
        self._passed = None
        return True

    def rest(self) -> None:
        """Nobody has looked for a while: host 0 may be silent as long as ever from now on."""
        self._leader.rest()
