"""``action=plan``: choose the layout, say why, and write it where a run can take it from."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import isinf
from pathlib import Path
from typing import Any

from rich.table import Table

from flagvega.actions.call import Answer, Call
from flagvega.errors import PreflightError
from flagvega.layout.codec import plan_to_json
from flagvega.plan.explain import Other, binding, others
from flagvega.plan.planner import Planned, plan_spec
from flagvega.records import write_json
from flagvega.report.pictures import Pictures, write_pictures
from flagvega.report.planning import memory_table, others_table, outlook_table, seconds

PLAN_FILE = "plan.json"


def act(call: Call) -> Answer:
    """Plan, whatever ``plan`` says in the YAML, and write ``<exp_dir>/plan.json``."""
    call_spec = call.spec
    spec = replace(call_spec, blocks={**call_spec.blocks, "plan": {**call_spec.blocks.get("plan", {}), "file": "auto"}})
    planned = plan_spec(spec, call.engine)
    compared = others(planned.outlook, planned.problem)
    path = spec.exp_dir / PLAN_FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, plan_to_json(planned.plan))
    except OSError as error:
        raise PreflightError(f"{path} cannot be written: {error.strerror}") from error
    title, tables, facts = _title(planned), _tables(planned, compared), _facts(planned)
    pictures = write_pictures(spec.exp_dir, planned.plan, planned.outlook, planned.problem, title, facts, tables)
    written = f"written to {path}; run it with plan={path}, or with plan=auto"
    return Answer(_document(planned, compared, path, pictures), (*tables, *facts, written, *pictures.lines))


def _document(planned: Planned, compared: list[Other], path: Path, pictures: Pictures) -> dict[str, Any]:
    return {
        "file": str(path),
        "pictures": list(pictures.files),
        "plan": plan_to_json(planned.plan),
        "limited_by": binding(planned.outlook, planned.problem),
        "compared": [
            {"name": other.name, "iteration_s": None if isinf(other.total_s) else other.total_s, "why": other.why}
            for other in compared
        ],
        "unused": unused(planned),
    }


def unused(planned: Planned) -> dict[str, int]:
    """Devices that the plan leaves idle, by chip."""
    used = Counter[str]()
    for side, _ in planned.outlook.candidate.stages:
        used[planned.problem.machine.groups[side.group].chip] += side.degrees.size
    idle = {group.chip: group.count - used[group.chip] for group in planned.problem.machine.groups}
    return {chip: count for chip, count in idle.items() if count}


def _title(planned: Planned) -> str:
    facts = planned.plan.predictions
    step = seconds(planned.found.total_s)
    return f"plan: {step} a step, {facts['tokens_per_s']:,.0f} tokens/s, MFU {facts['mfu']:.1%}"


def _facts(planned: Planned) -> tuple[str, ...]:
    found, problem = planned.found, planned.problem
    proof = "no layout in the space is faster by the same costs" if found.gap == 0 else (
        f"another layout could be faster by at most {found.gap:.1%}: the search ended before it had proven more"
    )  # fmt: skip
    return (
        f"limited by {binding(planned.outlook, problem)}",
        proof,
        *(f"left idle, for it is faster without: {count} x {chip}" for chip, count in unused(planned).items()),
        f"predicted from {planned.plan.predictions['source']}",
        *(f"assumed: {what}" for what in planned.plan.predictions["assumed"]),
    )


def _tables(planned: Planned, compared: list[Other]) -> list[Table]:
    outlook, problem = planned.outlook, planned.problem
    tables = [outlook_table(outlook, problem, _title(planned)), memory_table(outlook, problem)]
    return [*tables, others_table(compared, planned.found.total_s)] if compared else tables
