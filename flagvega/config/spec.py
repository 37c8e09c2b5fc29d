"""The spec: what the user asked for, after composing, before any decision. Frozen data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Task:
    """``experiment.task``."""

    type: str = "train"
    backend: str = "megatron"
    entrypoint: str | None = None


@dataclass(frozen=True)
class Runner:
    """``experiment.runner``: where ranks start."""

    type: str = "local"
    backend: str = "torchrun"
    hostfile: str | None = None
    nnodes: int = 1
    nproc_per_node: int | None = None
    node_rank: int | None = None
    master_addr: str | None = None
    master_port: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Other keys, as they stand."""


@dataclass(frozen=True)
class Commands:
    """``experiment.cmds``: the only shell text there is."""

    before_start: str = ""
    after_stop: str = ""


@dataclass(frozen=True)
class Spec:
    """One experiment and its task."""

    name: str
    exp_dir: Path
    task: Task
    runner: Runner
    envs: Mapping[str, Any]
    cmds: Commands
    arguments: Mapping[str, Any]
    """Engine arguments that the user gave, flat, hyphens as ``_``."""
    blocks: Mapping[str, Mapping[str, Any]]
    """Our own top-level blocks: plan, cluster, bridge, profile, tune, report."""
    where: Mapping[str, str] = field(default_factory=dict)
    """Key path (``train.model.num_layers``) or argument (``num_layers``) -> ``file:line key.path``."""
    composed: Mapping[str, Any] = field(default_factory=dict)
    """The whole configuration as composed, references to the environment unresolved."""
    warnings: tuple[str, ...] = ()
