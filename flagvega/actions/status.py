"""``action=status`` (also ``query``): what a run does now."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from flagvega.actions.call import Answer, Call
from flagvega.records import count_lines
from flagvega.report.progress import Progress, duration
from flagvega.run.directory import Run, RunDirectory, find_runs
from flagvega.serve.records import read_serving, show_serving


def act(call: Call) -> Answer:
    """The state of the runs of a directory, with their last metrics."""
    directories = find_runs(call.run_dir)
    reports = [_report(directory) for directory in directories]
    document = {"run_dir": str(call.run_dir), "runs": reports}
    if not reports:
        return Answer(document, (f"nothing has run in {call.run_dir}",))
    return Answer(document, tuple(_table(report) for report in reports))


def _report(directory: RunDirectory) -> dict[str, Any]:
    run = directory.read()
    assert run is not None
    progress = Progress(run.watch)
    for row in directory.metrics().read():
        progress.add(row)
    served = show_serving(directory.root, run.started, not run.finished)
    return {
        "run_id": run.run_id,
        "name": run.name,
        "state": _state(run),
        "node": run.node,
        "host": run.host,
        "ranks": list(run.ranks),
        "started": run.started,
        "ended": run.ended,
        "exit_code": run.exit_code,
        "reason": run.reason,
        "notes": list(run.notes),
        "start_step": run.start_step,
        "last": progress.last,
        "serving": read_serving(directory.root, run.started),
        "shown": progress.fields() | _batch(directory, run) | served,
    }


def _batch(directory: RunDirectory, run: Run) -> dict[str, str]:
    """How far a batch of prompts is."""
    total = run.watch.get("num_prompts")
    return {"prompts": f"{count_lines(directory.root / 'results.jsonl')}/{total}"} if total else {}


def _state(run: Run) -> str:
    """The recorded state, unless the process that would have recorded the end is dead."""
    return "died" if not run.finished and run.alive is False else run.state


def _table(report: Mapping[str, Any]) -> Table:
    took = duration((report["ended"] or time.time()) - report["started"])
    rows = {
        "run": f"{report['name']} ({report['run_id']})",
        "state": report["state"] if report["exit_code"] is None else f"{report['state']}, code {report['exit_code']}",
        "host": f"{report['host']} (node {report['node']}), {len(report['ranks'])} ranks",
        "time": took,
    }
    rows |= {"reason": report["reason"]} if report["reason"] else {}
    rows |= report["shown"]
    rows |= {"note": "\n".join(report["notes"])} if report["notes"] else {}
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(name, value)
    return table
