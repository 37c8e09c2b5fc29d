"""``python flagvega/tune/__main__.py <trial> <host> <tuner's pid> <limits>``: the supervisor of one trial.

Started by its path, so that it is of the flagvega that started it, installed or not.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from flagvega.run.directory import RunDirectory
from flagvega.run.supervisor import Supervisor
from flagvega.tune.measure import Limits
from flagvega.tune.trial import Watcher


def main(root: str, node: str, parent: str, limits: str) -> int:
    """Supervise this host's part of a trial that is prepared in ``root``; its exit code."""
    directory = RunDirectory(Path(root), int(node))
    watcher = Watcher(directory, Limits(**json.loads(limits)), int(parent))
    try:
        supervisor = Supervisor(directory, say=lambda text: print(text, flush=True), watch=watcher.look)
        return supervisor.supervise(os.environ).exit_code or 0
    finally:
        directory.lock.release()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
