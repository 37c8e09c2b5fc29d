"""Vendors' command-line tools and packages: is one here, and what does it print."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Sequence


def find_tool(name: str, folders: Sequence[str] = ()) -> str | None:
    """Path of a tool in PATH or in the folders where its vendor installs it."""
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", os.defpath), *folders)))


def run_tool(argv: Sequence[str], timeout_s: float = 20.0) -> str:
    """What a tool prints; empty when it is missing, fails or hangs, as tools do without their driver."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def is_installed(module: str) -> bool:
    """Whether a module's top package can be imported; imports nothing."""
    return importlib.util.find_spec(module.partition(".")[0]) is not None


def installed_versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of those packages that are installed, by name."""
    versions: dict[str, str] = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
