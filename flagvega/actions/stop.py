"""``action=stop``: end a run from any shell, and every process of it."""

from __future__ import annotations

from flagvega.actions.call import Answer, Call
from flagvega.run.directory import find_runs
from flagvega.run.stop import stop_run


def act(call: Call) -> Answer:
    """Stop the runs of a directory; it is no mistake when they have ended already."""
    force = call.flag("force")
    outcomes = [
        {"node": directory.node, "outcome": stop_run(directory, force, call.say)}
        for directory in find_runs(call.run_dir)
    ]
    words = {str(each["outcome"]) for each in outcomes} or {f"nothing has run in {call.run_dir}"}
    return Answer({"run_dir": str(call.run_dir), "runs": outcomes}, (", ".join(sorted(words)),))
