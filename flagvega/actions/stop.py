"""``action=stop``: end a run from any shell, and every process of it."""

from __future__ import annotations

from typing import Any

from flagvega.actions.call import Answer, Call
from flagvega.run.directory import find_runs
from flagvega.run.stop import stop_run
from flagvega.tune.folder import read_search


def act(call: Call) -> Answer:
    """Stop the runs of a directory; it is no mistake when they have ended already."""
    force = call.flag("force")
    document: dict[str, Any] = {"run_dir": str(call.run_dir)}
    shown = []
    if (searched := read_search(call.run_dir)) is not None:
        document["search"] = "stopped" if searched[0].stop(force, call.say) else "already stopped"
        shown.append(f"search: {document['search']}")
    document["runs"] = [
        {"node": directory.node, "outcome": stop_run(directory, force, call.say)}
        for directory in find_runs(call.run_dir)
    ]
    shown += sorted({str(each["outcome"]) for each in document["runs"]})
    return Answer(document, (", ".join(shown or [f"nothing has run in {call.run_dir}"]),))
