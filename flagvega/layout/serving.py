"""The plan of a serving run: which instance runs where. Frozen data, JSON, no decisions in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flagvega.config.spec import Role

SCHEMA = 1


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
    devices: tuple[int, ...]
    """Local indices on the node; of one chip."""
    tp: int
    pp: int
    host: str
    """Address that it listens at."""
    port: int
    role: Role = "both"

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


@dataclass(frozen=True)
class ServePlan:
    """All instances, in the order of the services."""

    instances: tuple[Instance, ...]


def serve_plan_to_json(plan: ServePlan) -> Mapping[str, Any]:
    """As ``plan.json`` holds it."""
    instances = [asdict(instance) for instance in plan.instances]
    return {"schema": SCHEMA, "kind": "serve", "decisions": {"instances": instances}}
