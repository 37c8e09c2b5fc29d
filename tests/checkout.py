"""A copy of the checkout, so that what a test writes stays out of it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.conftest import ROOT


def project_files(*patterns: str) -> list[Path]:
    """Paths, relative to the root, of the project's files: tracked ones and new ones."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted(Path(name) for name in listed.split("\0") if name and (ROOT / name).exists())


def copy_project(to: Path) -> None:
    """Copy the project's files to a new folder."""
    for path in project_files():
        (to / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, to / path)
