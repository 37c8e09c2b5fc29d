"""Whether what this engine runs on is installed on this host, and in a version that it knows."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from backends.megatron.fields import installed
from flagvega.errors import Fault

SUPPORTED = "0.16"
"""Releases of megatron-core that we run: later ones hand tensors from stage to stage by another interface."""
TESTED = "0.16.1"
MIN_TORCH = (2, 6)

_NUMBER = re.compile(r"^(?:MAJOR|MINOR|PATCH) = (\d+)", re.MULTILINE)


def check_host() -> list[Fault]:
    """What must be installed before a run can start here; nothing is imported to find out."""
    return [*_check_torch(), *_check_megatron(installed())]


def _check_torch() -> list[Fault]:
    fix = "pip install -r requirements/torch.txt, or your vendor's build of torch"
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return [Fault("torch is not installed", "this host", fix)]
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    needed = ".".join(map(str, MIN_TORCH))
    return [] if numbers >= MIN_TORCH else [Fault(f"torch {version} is too old", "this host", f"{needed} or later")]


def _check_megatron(folder: Path | None) -> list[Fault]:
    fix = f"pip install megatron-core=={TESTED}"
    if folder is None:
        return [Fault("megatron-core is not installed", "this host", fix)]
    file = folder / "package_info.py"
    version = ".".join(_NUMBER.findall(file.read_text())) if file.is_file() else "of an unknown version"
    if version.rpartition(".")[0] == SUPPORTED:
        return []
    return [Fault(f"megatron-core {version} is not supported: only {SUPPORTED}.x is", str(folder), fix)]


def installed_version(package: str) -> str:
    """The version of a package, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
