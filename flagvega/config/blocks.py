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
    """``plan``: a layout that exists already, or `auto`. `plan: <path>` is short for `plan: {file: <path>}`."""

    file: str | None = None
    """A `plan.json`, relative to the working directory; `auto` has the layout chosen."""
    time_s: int = field(default=10, metadata={"minimum": 1})
    """Seconds that the search for a layout may take; the gap that is left is printed."""


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
    memory_gib: float | None = None
    """Memory of a device, where the planner knows none or it differs."""
    tflops: float | None = None
    """Dense peak of a device in the element type of the run, in TFLOP/s; likewise."""
    bandwidth_gb_s: float | None = None
    """Memory bandwidth of a device; likewise."""
    link_gb_s: float | None = None
    """Between devices of the host, each and in one direction; likewise."""
    network_gb_s: float | None = None
    """Network of the host, for each of its devices and in one direction."""
    price_per_hour: float = 0.0
    """Of one device."""


@dataclass(frozen=True)
class ClusterLink:
    """One entry of ``cluster.links``."""

    between: tuple[str, ...]
    """Two kinds of chips."""
    gb_s: float
    """For each device, in one direction."""
    latency_us: float = 50.0
    """Start-up of a message."""


@dataclass(frozen=True)
class ClusterBlock:
    """``cluster``: the machines, when they are not to be detected; `cluster: <path>` is short for its `file`."""

    file: str | None = None
    """A YAML file with the other keys of this block, relative to the working directory."""
    nodes: tuple[ClusterNode, ...] = ()
    """Hosts with their devices, in order."""
    links: tuple[ClusterLink, ...] = ()
    """Between kinds of chips, where it is not the slower of their networks."""


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

SHORTHANDS: Mapping[str, str] = {"plan": "file", "cluster": "file"}
"""Blocks that may be written as one value: the key that it stands for."""
