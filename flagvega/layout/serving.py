"""The plan of a serving run: which instance runs where. Frozen data, JSON, no decisions in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flagvega.config.spec import Role

SCHEMA = 1
LOOPBACK = "127.0.0.1"
EVERYWHERE = ("0.0.0.0", "::")  # nosec B104
"""Instances that listen there do so at every address of their host."""


@dataclass(frozen=True)
class Instance:
    """One running engine."""

    id: int
    service: str
    """Which of the spec's services it is an instance of."""
    replica: int
    """Which of the service's instances."""
    chip: str
    node: int
    place: int
    """Which of the instances on its host."""
    devices: tuple[int, ...]
    """Local indices on the node; of one chip."""
    tp: int
    pp: int
    host: str
    """Address that it listens at."""
    port: int
    role: Role = "both"
    address: str = ""
    """Of its host, where the others reach it; empty where all instances are on one host."""

    @property
    def is_away(self) -> bool:
        """Whether it is reached over a network by a gateway on another host."""
        return bool(self.address) and self.host != LOOPBACK

    @property
    def url(self) -> str:
        """Where it answers."""
        host = self.address if self.address and self.host in EVERYWHERE else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


@dataclass(frozen=True)
class ServePlan:
    """All instances, in the order of the services."""

    instances: tuple[Instance, ...]

    @property
    def num_hosts(self) -> int:
        """Hosts that have instances."""
        return len({instance.node for instance in self.instances})

    def on(self, node: int) -> tuple[Instance, ...]:
        """The instances of a host, by its index in the cluster."""
        return tuple(instance for instance in self.instances if instance.node == node)


def serve_plan_to_json(plan: ServePlan) -> Mapping[str, Any]:
    """As ``plan.json`` holds it."""
    instances = [asdict(instance) for instance in plan.instances]
    return {"schema": SCHEMA, "kind": "serve", "decisions": {"instances": instances}}
