"""How long an emulated chip takes for a piece of work: its curve, which nobody but its device may read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from flagvega.errors import PreflightError


@dataclass(frozen=True)
class Line:
    """A link: a start-up time and a rate."""

    latency_s: float
    bytes_per_s: float

    def duration_s(self, num_bytes: float) -> float:
        """Seconds for a message of that size."""
        return self.latency_s + num_bytes / self.bytes_per_s


@dataclass(frozen=True)
class Curve:
    """What a chip sustains."""

    launch_s: float
    flops_per_s: float
    half_flops: float
    """A piece of work of this size runs at half the rate of an endlessly large one."""
    tp_efficiency: Mapping[int, float]
    kind_efficiency: Mapping[str, float]
    bytes_per_s: float
    collective: Line
    transfer: Line
    jitter: float
    """Standard deviation of the logarithm of a duration."""
    seed: int

    def duration_s(self, kind: str, flops: float, num_bytes: float, tp: int) -> float:
        """Seconds for a piece of work, without jitter."""
        if kind == "collective":
            return self.collective.duration_s(num_bytes)
        if kind == "transfer":
            return self.transfer.duration_s(num_bytes)
        efficiency = self.kind_efficiency.get(kind, 1.0) * self._tp_efficiency(tp)
        products_s = (flops + self.half_flops) / (self.flops_per_s * efficiency) if flops else 0.0
        return self.launch_s + max(products_s, num_bytes / self.bytes_per_s)

    def _tp_efficiency(self, tp: int) -> float:
        """That of the nearest listed degree that is not above ``tp``."""
        return self.tp_efficiency[max(degree for degree in self.tp_efficiency if degree <= tp)]


def read_curve(chip: str) -> Curve:
    """The curve of an emulated chip; PreflightError when it has none."""
    path = Path(__file__).with_name(f"curve-{chip}.yaml")
    if not path.is_file():
        raise PreflightError(f"chip '{chip}' has no curve: it cannot be emulated")
    values = yaml.safe_load(path.read_text())
    return Curve(**values | {name: Line(**values[name]) for name in ("collective", "transfer")})
