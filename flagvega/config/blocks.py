"""The top level of our YAML: the experiment and our own blocks. The text under a field is its documentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from flagvega.config.spec import Commands, Runner, Task


@dataclass(frozen=True)
class Experiment:
    """``experiment``: the run as a whole."""

    exp_name: str
    """Name of the experiment."""
    exp_dir: str | None = None
    """Folder of everything that the run writes, relative to the working directory; `outputs/<exp_name>` when left
    out."""
    task: Task = field(default_factory=Task)
    runner: Runner = field(default_factory=Runner)
    envs: Mapping[str, Any] = field(default_factory=dict)
    """Environment variables of every rank. A secret belongs into your own environment, never in here."""
    cmds: Commands = field(default_factory=Commands)


@dataclass(frozen=True)
class PlanBlock:
    """``plan``: a layout that exists already. `plan: <path>` is short for `plan: {file: <path>}`."""

    file: str | None = None
    """A `plan.json`, relative to the working directory."""


@dataclass(frozen=True)
class ClusterNode:
    """One entry of ``cluster.nodes``."""

    chip: str
    """Kind of the devices: the name or alias of a chip."""
    devices: int = field(default=1, metadata={"minimum": 1})
    """Devices of that kind on the host."""
    host: str = "localhost"
    """Name of the host; entries of one host are put together in order."""
    count: int = field(default=1, metadata={"minimum": 1})
    """How many hosts like this there are."""


@dataclass(frozen=True)
class ClusterBlock:
    """``cluster``: the machines, when they are not to be detected."""

    nodes: tuple[ClusterNode, ...] = ()
    """Hosts with their devices, in order."""


@dataclass(frozen=True)
class BridgeBlock:
    """``bridge``: the transport between meshes of unlike chips."""

    wire_dtype: Literal["fp32", "bf16", "fp16"] | None = None
    """Element type on the wire; without it, that of the activations, and nothing is lost."""
    chunk_bytes: int = field(default=0, metadata={"minimum": 0})
    """Size in bytes of the pieces that a transfer is cut into; 0 sends it whole."""
    slow_boundaries: tuple[int, ...] | None = field(default=None, metadata={"minimum": 0})
    """Boundaries (0 is between stages 0 and 1) that keep one more micro-batch in flight to hide the transfer;
    without it, those between unlike chips."""


BLOCKS: Mapping[str, type] = {"plan": PlanBlock, "cluster": ClusterBlock, "bridge": BridgeBlock}
"""Our own top-level blocks by name."""

LATER: Mapping[str, str] = {
    "profile": "measuring a cluster is not there yet",
    "tune": "tuning is not there yet",
    "report": "reports have no settings yet",
}
"""Blocks that are ours but have no keys yet, and why."""

SHORTHANDS: Mapping[str, str] = {"plan": "file"}
"""Blocks that may be written as one value: the key that it stands for."""
