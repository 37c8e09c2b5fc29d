"""``python flagvega/run/__main__.py <run directory> <node>``: the supervisor of a detached run.

Started by its path, so that it is of the flagvega that started it, installed or not.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from flagvega.run.directory import RunDirectory
from flagvega.run.supervisor import Supervisor


def main(root: str, node: str) -> int:
    """Supervise a run that is prepared in ``root``; its exit code."""
    directory = RunDirectory(Path(root), int(node))
    try:
        run = Supervisor(directory, say=lambda text: print(text, flush=True), watch=lambda: None).supervise(os.environ)
        return run.exit_code or 0
    finally:
        directory.lock.release()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
