"""The job: what would be started where, as data that can be printed before it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class NodeJob:
    """What one host runs."""

    node: int
    host: str
    num_ranks: int
    argv: tuple[str, ...]
    """The rank program; the launcher adds its own words in front."""
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """Commands for every node, and the files (path in the run directory -> JSON) they read."""

    nodes: tuple[NodeJob, ...]
    files: dict[str, Any] = field(default_factory=dict)
