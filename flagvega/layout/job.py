"""The job: what would be started where, as data that can be printed before it runs."""

from __future__ import annotations

import os
import site
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flagvega


@dataclass(frozen=True)
class NodeJob:
    """What one host runs."""

    node: int
    host: str
    num_ranks: int
    argv: tuple[str, ...]
    """The rank program; the launcher adds its own words in front."""
    env: dict[str, str] = field(default_factory=dict)
    is_launcher: bool = False
    """The program starts its ranks itself: nothing is put in front."""
    files: dict[str, Any] = field(default_factory=dict)
    """Of those that the job reads, the ones that this host alone reads, and writes."""


@dataclass(frozen=True)
class Job:
    """Commands for every node, and the files (path in the run directory -> JSON) that all of them read."""

    nodes: tuple[NodeJob, ...]
    files: dict[str, Any] = field(default_factory=dict)


def source_path(with_environment: bool = False) -> dict[str, str]:
    """``PYTHONPATH`` by which ``python -P`` finds this source tree; empty where it is installed."""
    environment = dict(os.environ) if with_environment else {}
    root = Path(flagvega.__file__).resolve().parents[1]
    if root in {Path(folder).resolve() for folder in site.getsitepackages()}:
        return environment
    inherited = os.environ.get("PYTHONPATH")
    return environment | {"PYTHONPATH": os.pathsep.join([str(root), inherited] if inherited else [str(root)])}
