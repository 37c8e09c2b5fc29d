"""What trials of layouts say about layouts that have not been tried."""

from __future__ import annotations

from dataclasses import dataclass, field

from flagvega.tune.candidates import Seen
from flagvega.tune.pool import Pool
from flagvega.tune.search import Guided
from flagvega.tune.study import Trial
from flagvega.tune.training.families import Layouts
from flagvega.tune.training.needs import Need, needs_of
from flagvega.tune.training.rules import memory, time
from flagvega.tune.training.shape import Point


@dataclass
class History:
    """Stages that ran out of memory, and layouts that ran."""

    failed: list[tuple[int, Need, tuple[object, ...]]] = field(default_factory=list)
    """(trial, the stage that ran out of memory, settings)."""
    ran: list[tuple[int, Point, tuple[Need, ...]]] = field(default_factory=list)

    def add(self, seen: Seen, trial: Trial) -> None:
        """One more trial."""
        if not isinstance(seen.family, Layouts):
            return
        point: Point = seen.point
        needs = needs_of(point, seen.family.forecast)
        if trial.is_good:
            self.ran.append((trial.number, point, needs))
        elif trial.status == "oom" and trial.rank is not None:
            self.failed.append((trial.number, needs[_stage_of(point, trial.rank)], point.settings))

    def reason(self, seen: Seen) -> str | None:
        """Why a candidate need not be tried, or None."""
        if not isinstance(seen.family, Layouts) or not (self.failed or self.ran):
            return None
        point: Point = seen.point
        needs = needs_of(point, seen.family.forecast)
        for number, need, settings in self.failed:
            if settings == point.settings and (why := memory.check(needs, need)):
                return f"{why} (trial {number})"
        for number, tried, its in self.ran:
            if why := time.check(point, needs, tried, its):
                return f"{why} (trial {number})"
        return None


def _stage_of(point: Point, rank: int) -> int:
    """The stage that a rank of the plan belongs to: ranks go through stages in order."""
    for i, mesh in enumerate(point.shape.stage_meshes):
        rank -= mesh.tp * mesh.cp * (mesh.dp or 1)
        if rank < 0:
            return i
    raise AssertionError("no such rank")


def guided(pool: Pool) -> Guided:
    """The model's order, with what trials say about others."""
    return Guided(pool, History())
