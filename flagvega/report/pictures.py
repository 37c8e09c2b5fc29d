"""The files that show a plan: a page, a picture, a trace."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from flagvega.errors import PreflightError
from flagvega.layout.plan import Plan
from flagvega.plan.explain import Outlook
from flagvega.plan.space import Problem
from flagvega.records import write_bytes, write_text
from flagvega.report.page import plan_page
from flagvega.report.picture import can_draw, timeline_png
from flagvega.report.svg import MemoryBar
from flagvega.report.timeline import Lane, make_timeline
from flagvega.report.trace import trace_events

FOLDER = "report"
PAGE, PICTURE, TRACE = "plan.html", "plan.png", "plan.trace.json"


@dataclass(frozen=True)
class Pictures:
    """What was written, and what to tell of it."""

    files: tuple[str, ...]
    lines: tuple[str, ...]


def write_pictures(exp_dir: Path, plan: Plan, outlook: Outlook, problem: Problem, title: str, facts: Sequence[str],
                   tables: Sequence[Table]) -> Pictures:  # fmt: skip
    """Write ``<exp_dir>/report/plan.*``; PreflightError when that cannot be written."""
    meshes = [stage.replicas[0].mesh for stage in plan.stages]
    lanes = tuple(Lane(mesh, plan.meshes[mesh].chip) for mesh in meshes)
    timeline = make_timeline(lanes, outlook.pipeline, outlook.idle)
    folder = exp_dir / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / PAGE, plan_page(title, facts, timeline, memory_bars(outlook, problem), tables))
        write_text(folder / TRACE, json.dumps(trace_events(timeline), separators=(",", ":")))
        if can_draw():
            write_bytes(folder / PICTURE, timeline_png(timeline, title))
    except OSError as error:
        raise PreflightError(f"{folder} cannot be written: {error.strerror}") from error
    page = f"drawn in {folder / PAGE}"
    trace = f"timeline for ui.perfetto.dev in {folder / TRACE}"
    files = (str(folder / PAGE), str(folder / TRACE))
    if can_draw():
        return Pictures((*files, str(folder / PICTURE)), (f"{page} and {PICTURE}", trace))
    missing = f"no {PICTURE}, for matplotlib is not installed: pip install 'flagvega[report]'"
    return Pictures(files, (page, trace, missing))


def memory_bars(outlook: Outlook, problem: Problem) -> list[MemoryBar]:
    """A bar for each stage."""
    groups = problem.machine.groups
    sides = [groups[side.group] for side, _ in outlook.candidate.stages]
    return [
        MemoryBar(group.chip, asdict(stage.memory), group.memory_bytes)
        for stage, group in zip(outlook.stages, sides, strict=True)
    ]
