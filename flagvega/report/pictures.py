"""The files that show a plan: a page, a picture, a trace."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from flagvega.layout.plan import Plan
from flagvega.plan.compare import describe_degrees
from flagvega.plan.explain import Outlook
from flagvega.plan.space import Problem
from flagvega.records import write_bytes, write_text, writing
from flagvega.report.overview import BAR_COLOURS, Bar, chip_colours, comparison_svg, layout_svg, stage_boxes
from flagvega.report.page import plan_page, wide
from flagvega.report.picture import can_draw, timeline_png
from flagvega.report.planning import layers_of
from flagvega.report.svg import MemoryBar, legend
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
                   tables: Sequence[Table], compared: Sequence[Bar] = ()) -> Pictures:  # fmt: skip
    """Write ``<exp_dir>/report/plan.*``; PreflightError when that cannot be written.

    ``compared`` are the plan and what it is compared with.
    """
    meshes = [stage.replicas[0].mesh for stage in plan.stages]
    notes = [f"{describe_degrees(side.degrees)}: {layers_of(work)}" for side, work in outlook.candidate.stages]
    lanes = tuple(Lane(mesh, plan.meshes[mesh].chip, note) for mesh, note in zip(meshes, notes, strict=True))
    timeline = make_timeline(lanes, outlook.pipeline, outlook.idle)
    folder = exp_dir / FOLDER
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        overview = overview_of(outlook, problem, compared)
        write_text(folder / PAGE, plan_page(title, facts, timeline, memory_bars(outlook, problem), tables, overview))
        write_text(folder / TRACE, json.dumps(trace_events(timeline), separators=(",", ":")))
        if can_draw():
            write_bytes(folder / PICTURE, timeline_png(timeline, title))
    page = f"drawn in {folder / PAGE}"
    trace = f"timeline for ui.perfetto.dev in {folder / TRACE}"
    files = (str(folder / PAGE), str(folder / TRACE))
    if can_draw():
        return Pictures((*files, str(folder / PICTURE)), (f"{page} and {PICTURE}", trace))
    missing = f"no {PICTURE}, for matplotlib is not installed: pip install -r requirements/report.txt"
    return Pictures(files, (page, trace, missing))


def overview_of(outlook: Outlook, problem: Problem, compared: Sequence[Bar]) -> list[tuple[str, str]]:
    """Headings and pictures that come first."""
    boxes = stage_boxes(outlook, problem)
    found = [("Stages in pipeline order", legend(chip_colours(boxes), {}) + wide(layout_svg(boxes)))]
    if len(compared) > 1:
        names = {"other layouts": BAR_COLOURS["layout"], "other clusters": BAR_COLOURS["cluster"]}
        found.append(("A step, compared", legend(names, {}) + wide(comparison_svg(compared))))
    return found


def memory_bars(outlook: Outlook, problem: Problem) -> list[MemoryBar]:
    """A bar for each stage."""
    groups = problem.machine.groups
    sides = [groups[side.group] for side, _ in outlook.candidate.stages]
    return [
        MemoryBar(group.chip, asdict(stage.memory), group.memory_bytes)
        for stage, group in zip(outlook.stages, sides, strict=True)
    ]
