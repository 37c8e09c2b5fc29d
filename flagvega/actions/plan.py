"""``action=plan``: choose the layout, say why, and write it where a run can take it from."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace
from math import isinf
from pathlib import Path
from typing import Any

from rich.table import Table

from flagvega.actions import serve_plan
from flagvega.actions.call import Answer, Call
from flagvega.layout.codec import plan_to_json
from flagvega.plan.compare import Gain, find_gains, find_shapes, other_shapes, price
from flagvega.plan.explain import Other, binding, others
from flagvega.plan.planner import Planned, plan_spec
from flagvega.records import write_json, writing
from flagvega.report.overview import Bar
from flagvega.report.pictures import Pictures, write_pictures
from flagvega.report.planning import MAX_GAINS, gains_table, memory_table, others_table, outlook_table, seconds
from flagvega.report.searching import SearchView

PLAN_FILE = "plan.json"
MIN_REASONS_S, MAX_REASONS_S = 4.0, 6.0
"""Telling why may take as long as planning did, within these."""
OTHERS_SHARE, SHAPES_SHARE, GAINS_SHARE = 0.25, 0.4, 0.35
"""Of that time."""
WORTH_TELLING = 0.005
"""Share of a step that a change to the cluster must gain to be told as the best one."""


@dataclass(frozen=True)
class Reasons:
    """Why the plan is the one."""

    compared: list[Other]
    """The plain splits, and each kind of chip alone."""
    shapes: list[Other]
    """The best plans of other shapes."""
    gains: list[Gain]
    """What changes to the cluster would gain, most first."""

    @property
    def advice(self) -> str:
        """The one change that would gain most."""
        if not self.gains:
            return ""
        best = self.gains[0]
        if best.share < WORTH_TELLING:
            return f"no change to the cluster that was tried gains {WORTH_TELLING:.1%}"
        return f"what would gain most: {best.name}, at least {best.share:.1%}"


def act(call: Call) -> Answer:
    """Plan, whatever ``plan`` says in the YAML, and write ``<exp_dir>/plan.json``."""
    if call.serves:
        return serve_plan.act(call)
    call_spec = call.spec
    spec = replace(call_spec, blocks={**call_spec.blocks, "plan": {**call_spec.blocks.get("plan", {}), "file": "auto"}})
    begin = time.monotonic()
    with SearchView(call.console) as view:
        planned = plan_spec(spec, call.engine, view.better)
    reasons = find_reasons(planned, min(MAX_REASONS_S, max(MIN_REASONS_S, time.monotonic() - begin)))
    path = spec.exp_dir / PLAN_FILE
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, plan_to_json(planned.plan))
    title, tables, facts = _title(planned), _tables(planned, reasons), _facts(planned, reasons)
    bars = _bars(planned, reasons)
    pictures = write_pictures(spec.exp_dir, planned.plan, planned.outlook, planned.problem, title, facts, tables, bars)
    written = f"written to {path}; run it with plan={path}, or with plan=auto"
    return Answer(_document(planned, reasons, path, pictures), (*tables, *facts, written, *pictures.lines))


def find_reasons(planned: Planned, time_s: float) -> Reasons:
    """Compare the plan with others, and with what it would be on other clusters, for about so many seconds."""
    outlook, problem = planned.outlook, planned.problem
    compared = others(outlook, problem, OTHERS_SHARE * time_s)
    others_of = planned.found.others or find_shapes(
        outlook.candidate, problem, planned.top_k - 1, SHAPES_SHARE * time_s
    )
    shapes = other_shapes(others_of, outlook, problem)
    return Reasons(compared, shapes, find_gains(outlook, problem, GAINS_SHARE * time_s))


def _document(planned: Planned, reasons: Reasons, path: Path, pictures: Pictures) -> dict[str, Any]:
    outlook, problem = planned.outlook, planned.problem
    return {
        "file": str(path),
        "pictures": list(pictures.files),
        "plan": plan_to_json(planned.plan),
        "objective": problem.objective,
        "price": price(outlook, problem),
        "limited_by": binding(outlook, problem),
        "compared": _listed(reasons.compared),
        "shapes": _listed(reasons.shapes),
        "changes": [{"change": gain.name, "iteration_s": gain.total_s, "gain": gain.share} for gain in reasons.gains],
        "unused": unused(planned),
    }


def _listed(found: list[Other]) -> list[dict[str, Any]]:
    return [
        {"name": other.name, "iteration_s": None if isinf(other.total_s) else other.total_s, "why": other.why}
        for other in found
    ]


def unused(planned: Planned) -> dict[str, int]:
    """Devices that the plan leaves idle, by chip."""
    used = Counter[str]()
    for side, _ in planned.outlook.candidate.stages:
        used[planned.problem.machine.groups[side.group].chip] += side.degrees.size
    idle = {group.chip: group.count - used[group.chip] for group in planned.problem.machine.groups}
    return {chip: count for chip, count in idle.items() if count}


def _title(planned: Planned) -> str:
    facts = planned.plan.predictions
    costs = price(planned.outlook, planned.problem)
    priced = f", price {costs:.4g}" if costs else ""
    step = seconds(planned.outlook.total_s)
    return f"plan: {step} a step, {facts['tokens_per_s']:,.0f} tokens/s, MFU {facts['mfu']:.1%}{priced}"


def _facts(planned: Planned, reasons: Reasons) -> tuple[str, ...]:
    found, problem = planned.found, planned.problem
    better = "cheaper" if problem.objective == "cost" else "faster"
    proof = f"no layout in the space is {better} by the same costs" if found.gap == 0 else (
        f"another layout could be {better} by at most {found.gap:.1%}: the search ended before it had proven more"
    )  # fmt: skip
    return (
        f"limited by {binding(planned.outlook, problem)}",
        proof,
        *(f"left idle, for it is {better} without: {count} x {chip}" for chip, count in unused(planned).items()),
        *([reasons.advice] if reasons.advice else []),
        f"predicted from {planned.plan.predictions['source']}",
        *(f"assumed: {what}" for what in planned.plan.predictions["assumed"]),
    )


def _bars(planned: Planned, reasons: Reasons) -> list[Bar]:
    layouts = [other for other in (*reasons.shapes, *reasons.compared) if not isinf(other.total_s)]
    return [
        Bar("the plan", planned.outlook.total_s, "plan"),
        *(Bar(other.name, other.total_s, "layout") for other in layouts),
        *(Bar(f"with {gain.name}", gain.total_s, "cluster") for gain in reasons.gains[:MAX_GAINS]),
    ]


def _tables(planned: Planned, reasons: Reasons) -> list[Table]:
    outlook, problem = planned.outlook, planned.problem
    tables = [outlook_table(outlook, problem, _title(planned)), memory_table(outlook, problem)]
    if reasons.compared:
        tables.append(others_table(reasons.compared, outlook.total_s, "plainer layouts"))
    if reasons.shapes:
        tables.append(others_table(reasons.shapes, outlook.total_s, "other shapes, the best found"))
    if reasons.gains:
        tables.append(gains_table(reasons.gains))
    return tables
