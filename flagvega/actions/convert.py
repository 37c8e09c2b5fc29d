"""``action=convert``: the weights of a run as a HuggingFace folder."""

from __future__ import annotations

import os
from pathlib import Path

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from flagvega.actions.call import Answer, Call

FOLDER = "huggingface"
"""Where the folder goes in the run's own, unless it is told."""


def act(call: Call) -> Answer:
    """Convert the newest good checkpoint of the run, or the given one."""
    options = call.command.options
    target = Path(os.path.abspath(options["to"])) if "to" in options else call.spec.exp_dir / FOLDER
    given = Path(options["checkpoint"]) if "checkpoint" in options else None
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    is_silent = call.json or not call.console.is_terminal
    with Progress(*columns, console=call.console, transient=True, disable=is_silent) as progress:
        task = progress.add_task("converting", total=1.0)
        written = call.engine.export(
            call.spec, given, target, options.get("dtype"), lambda share: progress.update(task, completed=share)
        )
    size = f"{written['weight_bytes'] / 2**20:,.1f} MiB"
    what = f"{written['family']} model in {written['dtype']}, {size}, of {written['checkpoint']}"
    return Answer(dict(written), (f"{written['folder']}: {what}", *written["notes"]))
