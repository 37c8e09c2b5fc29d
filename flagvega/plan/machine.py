"""The machine as the planner sees it: how many devices of each kind, how fast, how joined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

DEFAULT_LINK_BYTES_PER_S = 12e9
DEFAULT_NETWORK_BYTES_PER_S = 3e9
"""Assumed, and said so, where nobody tells: a PCIe 3 slot, and a 25 Gb/s card."""
LINK_LATENCY_S = 10e-6
NETWORK_LATENCY_S = 50e-6


@dataclass(frozen=True)
class Link:
    """Time for a message: a start-up and a rate, per device and direction."""

    latency_s: float
    bytes_per_s: float

    def duration_s(self, num_bytes: float) -> float:
        """Seconds for a message of that size."""
        return self.latency_s + num_bytes / self.bytes_per_s


@dataclass(frozen=True)
class Group:
    """All devices of one kind of chip."""

    chip: str
    per_node: tuple[int, ...]
    """Devices of each node that has any."""
    memory_bytes: int
    flops_per_s: float
    """Dense peak in the run's element type."""
    memory_bytes_per_s: float
    link: Link
    """Between devices of a node."""
    network: Link
    """Between nodes, and to other kinds of chips."""
    price_per_hour: float = 0.0
    """Of one device."""

    @property
    def count(self) -> int:
        """Devices."""
        return sum(self.per_node)

    @property
    def node_size(self) -> int:
        """Devices of its largest node."""
        return max(self.per_node)


@dataclass(frozen=True)
class Machine:
    """Groups of devices and what joins them."""

    groups: tuple[Group, ...]
    between: Mapping[tuple[int, int], Link] = field(default_factory=dict)
    """Links between groups, each pair both ways; others meet at the slower of their networks."""
    assumed: tuple[str, ...] = ()
    """What nobody told and was taken for granted, in words."""

    def link_between(self, a: int, b: int) -> Link:
        """What a boundary between two groups crosses."""
        if (a, b) in self.between:
            return self.between[a, b]
        one, other = self.groups[a].network, self.groups[b].network
        return Link(max(one.latency_s, other.latency_s), min(one.bytes_per_s, other.bytes_per_s))
