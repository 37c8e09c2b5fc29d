"""A cluster: hosts with devices."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """A host; ``devices[i]`` is the chip of local index i."""

    host: str
    devices: tuple[str, ...]


@dataclass(frozen=True)
class Cluster:
    """Hosts in order; the index of a node is its node rank."""

    nodes: tuple[Node, ...]

    @property
    def num_devices(self) -> int:
        """Devices of all hosts."""
        return sum(len(node.devices) for node in self.nodes)
