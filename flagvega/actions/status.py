"""``action=status`` (also ``query``): what a run does now."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from flagvega.actions.call import Answer, Call
from flagvega.records import count_lines
from flagvega.report.planning import seconds
from flagvega.report.progress import Progress, duration
from flagvega.run.directory import Run, RunDirectory, find_runs
from flagvega.serve.records import read_serving
from flagvega.serve.view import show_serving
from flagvega.tune.folder import Search, SearchFolder, read_search
from flagvega.tune.study import best_of, words


def act(call: Call) -> Answer:
    """The state of the runs of a directory, with their last metrics."""
    directories = find_runs(call.run_dir)
    reports = [_report(directory) for directory in directories]
    document: dict[str, Any] = {"run_dir": str(call.run_dir), "runs": reports}
    searched = read_search(call.run_dir)
    tables = [_table(report) for report in reports]
    if searched is not None:
        document["search"] = _search_report(*searched)
        tables.insert(0, _search_table(document["search"]))
    if not tables:
        return Answer(document, (f"nothing has run in {call.run_dir}",))
    return Answer(document, tuple(tables))


def _search_report(folder: SearchFolder, search: Search) -> dict[str, Any]:
    trials = folder.trials(search)
    best = best_of(trials)
    running = folder.running() if search.state == "running" else []
    return {
        **asdict(search),
        "folder": str(folder.root),
        "num_trials": len(trials),
        "dead": Counter(trial.status for trial in trials if not trial.is_good),
        "running": [str(path) for path in running],
        "best": None if best is None else {"trial": best.number, "time_s": best.time_s, "values": dict(best.values)},
    }


def _search_table(report: Mapping[str, Any]) -> Table:
    best, unit = report["best"], report["unit"]
    rows = {
        "search": report["name"],
        "state": report["state"],
        "trials": f"{report['num_trials']} of {report['num_candidates']:,} candidates",
        "time": duration((report["ended"] or time.time()) - report["started"]),
    }
    rows |= {"reason": report["reason"]} if report["reason"] else {}
    if dead := report["dead"]:
        rows["dead"] = ", ".join(f"{number} {status}" for status, number in dead.items())
    if best is not None:
        rows["best"] = f"trial {best['trial']}, {seconds(best['time_s'])} a {unit}: {words(best['values'])}"
    if report["running"]:
        rows["running"] = ", ".join(f"trial {int(Path(path).name)}" for path in report["running"])
    return _two_columns(rows)


def _report(directory: RunDirectory) -> dict[str, Any]:
    run = directory.read()
    assert run is not None
    progress = Progress(run.watch)
    for row in directory.metrics().read():
        progress.add(row)
    served = _of_host(run, show_serving(directory.root, run.started, not run.finished))
    return {
        "run_id": run.run_id,
        "name": run.name,
        "state": _state(run),
        "node": run.node,
        "host": run.host,
        "ranks": list(run.ranks),
        "unit": run.unit,
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


def _of_host(run: Run, shown: dict[str, str]) -> dict[str, str]:
    """Of what a serving run shows, the instances of one host; the first has the rest as well."""
    own = {f"instance {rank}" for rank in run.ranks}
    return {name: text for name, text in shown.items() if name in own or not (run.node or name.startswith("instance "))}


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
        "host": f"{report['host']} (node {report['node']}), {len(report['ranks'])} {report['unit']}s",
        "time": took,
    }
    rows |= {"reason": report["reason"]} if report["reason"] else {}
    rows |= report["shown"]
    rows |= {"note": "\n".join(report["notes"])} if report["notes"] else {}
    return _two_columns(rows)


def _two_columns(rows: Mapping[str, str]) -> Table:
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(name, value)
    return table
