"""The constants of the analytic costs, as fitted to published runs: see ``calibration.yaml`` beside this file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from statistics import median

import yaml


@dataclass(frozen=True)
class Calibration:
    """What data sheets do not say."""

    efficiency: Mapping[tuple[str, str], float]
    """Share of a chip's dense peak that wide products sustain, by chip and element type."""
    half_width: float
    """Products this narrow (hidden size over tp) run at half of it."""
    link_share: float
    """Share of a link's rate that collectives inside a layer reach."""
    expert_half_width: float = 1500.0
    """The same of the products of experts, many small ones in one kernel (by the inner width of an expert)."""
    attention: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """Of the share of peak that wide products sustain, what fused attention does, by chip and element type."""
    memory_share: float = 0.6
    """Share of the memory's bandwidth that kernels reach which only pass over memory; taken, not fitted."""
    launch_s: float = 20e-6
    """Start-up of one layer's kernels in a forward pass, backward twice; taken, not fitted."""
    held_out_error: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """Median relative error of a step's time on runs that were not fitted, by chip and element type."""

    def efficiency_of(self, chip: str, dtype: str) -> float:
        """The chip's share of peak; for one that was never fitted the median of all chips.

        Both element types of 16 bits run on the same units.
        """
        if (chip, dtype) in self.efficiency:
            return self.efficiency[chip, dtype]
        halves = {name: share for (name, kind), share in self.efficiency.items() if kind == "bf16"}
        return halves[chip] if chip in halves and dtype == "fp16" else median(halves.values())

    def attention_of(self, chip: str, dtype: str) -> float:
        """The chip's share for attention; for one that was never fitted the median of all chips."""
        if (chip, dtype) in self.attention:
            return self.attention[chip, dtype]
        return median(self.attention.values() or (1.0,))

    def describe(self, chips: Iterable[str], dtype: str) -> str:
        """Where predictions for these chips come from, and how far off they may be."""
        said = []
        for chip in dict.fromkeys(chips):
            error = self.held_out_error.get((chip, dtype))
            said.append(f"{chip} never compared with runs" if error is None else f"{chip} {error:.0%}")
        return f"data sheets and published runs; median error of a step on runs not fitted: {', '.join(said)}"


@cache
def calibration() -> Calibration:
    """The committed table."""
    said = yaml.safe_load(files("flagvega.plan").joinpath("calibration.yaml").read_text(encoding="utf-8"))
    efficiency, attention, off = (_by_chip(said[name]) for name in ("efficiency", "attention", "held_out_error"))
    half_width, link_share, expert_half_width = (said[n] for n in ("half_width", "link_share", "expert_half_width"))
    return Calibration(efficiency, half_width, link_share, expert_half_width, attention, held_out_error=off)


def _by_chip(table: Mapping[str, Mapping[str, float]]) -> dict[tuple[str, str], float]:
    return {(chip, dtype): value for chip, by_dtype in table.items() for dtype, value in by_dtype.items()}
