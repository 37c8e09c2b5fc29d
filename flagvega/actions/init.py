"""``action=init``: a commented pair of YAML files to start from."""

from __future__ import annotations

from pathlib import Path

from flagvega.actions.call import Answer, Call
from flagvega.config.starter import write_starter

FOLDER = "conf"
NAME = "experiment"


def act(call: Call) -> Answer:
    """Write them to ``--config-path`` (``conf``) under ``--config-name`` (``experiment``); never over others."""
    folder = Path(call.command.config_path or FOLDER)
    name = call.command.config_name or NAME
    paths = write_starter(folder, name)
    where = f"--config-path {folder} --config-name {name}"
    shown = [f"wrote {path}" for path in paths]
    return Answer({"files": [str(path) for path in paths]}, (*shown, f"next: python run.py {where} action=dryrun"))
