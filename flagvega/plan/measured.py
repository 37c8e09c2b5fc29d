"""Costs from measurements: interpolated inside the measured range, scaled from the nearest measured point outside.

What nobody measured is analytic; :meth:`MeasuredCosts.tell` says which of a plan's numbers are.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean
from typing import Literal

from flagvega.plan.analytic import AnalyticCosts
from flagvega.plan.costs import Degrees, Kind, Side
from flagvega.plan.machine import Link, Machine
from flagvega.plan.profile import LayerRow, LinkRow, OptimizerRow, Profile

Pass = Literal["forward_s", "backward_s"]
Point = tuple[int, int, int, bool]
"""tp, cp, ep, sp."""


@dataclass(frozen=True)
class Curve:
    """Seconds and bytes over samples of a rank, for one part of a model on one kind of chip at given degrees."""

    samples: tuple[int, ...]
    forward_s: tuple[float, ...]
    backward_s: tuple[float, ...]
    activation_bytes: tuple[float | None, ...]


@dataclass
class MeasuredCosts:
    """Implements :class:`flagvega.plan.costs.Costs`; ``analytic`` answers what was not measured."""

    profile: Profile
    analytic: AnalyticCosts
    origin: str
    """Where the profile comes from, in words."""
    _seen: dict[tuple[str, int, Kind, Degrees, int], float] = field(default_factory=dict)

    @property
    def machine(self) -> Machine:
        """The machine with its measured links."""
        return self.analytic.machine

    def on(self, machine: Machine) -> MeasuredCosts:
        """The same measurements on another machine."""
        return MeasuredCosts(self.profile, self.analytic.on(machine), self.origin)

    def forward_s(self, group: int, kind: Kind, degrees: Degrees, samples: int) -> float:
        """Measured, or scaled from what was."""
        return self._ask("forward_s", group, kind, degrees, samples)

    def backward_s(self, group: int, kind: Kind, degrees: Degrees, samples: int) -> float:
        """Measured, or scaled from what was."""
        return self._ask("backward_s", group, kind, degrees, samples)

    def activation_bytes(self, group: int, kind: Kind, degrees: Degrees, samples: int) -> float | None:
        """Saved bytes where they were measured at these degrees; they are proportional to the samples."""
        curve = self._curves.get((self._chip(group), kind), {}).get(_point(degrees))
        if curve is None:
            return None
        known = [(size, saved) for size, saved in zip(curve.samples, curve.activation_bytes, strict=True) if saved]
        if not known:
            return None
        size, saved = min(known, key=lambda each: abs(each[0] - samples))
        return saved * samples / size

    def transfer_s(self, sender: Side, receiver: Side, samples: int) -> float:
        """As the analytic costs have it, over the measured links."""
        own = self._own_links.get((self._chip(sender.group), self._hosts(sender, receiver)))
        if sender.group != receiver.group or own is None:
            return self.analytic.transfer_s(sender, receiver, samples)
        work, degrees = self.analytic.work, sender.degrees
        total = samples * work.seq * work.shape.hidden * work.element_bytes
        if sender == receiver:
            return own.duration_s(total / (degrees.dp * degrees.cp * (degrees.tp if degrees.sp else 1)))
        return own.duration_s(total / min(sender.degrees.size, receiver.degrees.size))

    def reduction_s(self, group: int, degrees: Degrees, dense: float, experts: float, backward_s: float) -> float:
        """As the analytic costs have it, over the measured links."""
        return self.analytic.reduction_s(group, degrees, dense, experts, backward_s)

    def optimizer_s(self, group: int, degrees: Degrees, dense: float, experts: float) -> float:
        """The measured line over the parameters that a rank updates, and the overhead of a step.

        Gathering is analytic, over measured links.
        """
        line = self._optimizers.get(self._chip(group))
        if line is None:
            return self.analytic.optimizer_s(group, degrees, dense, experts)
        sharded = self.analytic.distributed_optimizer
        replicas, expert_replicas = degrees.replicas if sharded else (1, 1)
        updated = dense / replicas + experts / expert_replicas
        step_s = line[0] + line[1] * updated + self._overheads.get(self._chip(group), 0.0)
        return step_s + self.analytic.gathering_s(group, degrees, dense, experts)

    def tell(self, sides: Sequence[Side], samples: int) -> tuple[str, tuple[str, ...]]:
        """Where the numbers of these stages come from, and what of them was not measured."""
        missing: dict[str, None] = {}
        for side in dict.fromkeys(sides):
            chip, per_rank = self._chip(side.group), samples // side.degrees.dp
            for kind in self._kinds:
                missing |= dict.fromkeys(self._doubts(chip, kind, side.degrees, per_rank))
            if chip not in self._optimizers:
                missing[f"the optimizer of {chip} was not measured: analytic"] = None
        for a, b in zip(sides, sides[1:], strict=False):
            if not self._is_measured(a, b):
                pair = f"{self._chip(a.group)} and {self._chip(b.group)}"
                missing[f"messages between {pair} were not measured: analytic"] = None
        return f"measurements ({self.origin})", tuple(missing)

    def _ask(self, which: Pass, group: int, kind: Kind, degrees: Degrees, samples: int) -> float:
        key = which, group, kind, degrees, samples
        if key not in self._seen:
            self._seen[key] = self._work_out(which, group, kind, degrees, samples)
        return self._seen[key]

    def _work_out(self, which: Pass, group: int, kind: Kind, degrees: Degrees, samples: int) -> float:
        chip = self._chip(group)
        expected_s = self._expect(which, group, kind, degrees, samples)
        curves = self._curves.get((chip, kind))
        if not curves:
            return expected_s * self._bias(which, group, chip, samples)
        point = _nearest(curves, _point(degrees))
        curve = curves[point]
        measured_s = interpolate(curve.samples, getattr(curve, which), samples)
        if measured_s is None:
            first = curve.samples[0]
            here, there = (self._expect(which, group, kind, _degrees(point), size) for size in (samples, first))
            measured_s = getattr(curve, which)[0] * (here / there)
        if point == _point(degrees):
            return measured_s
        return measured_s * expected_s / self._expect(which, group, kind, _degrees(point), samples)

    def _expect(self, which: Pass, group: int, kind: Kind, degrees: Degrees, samples: int) -> float:
        ask = self.analytic.forward_s if which == "forward_s" else self.analytic.backward_s
        return ask(group, kind, degrees, samples)

    def _bias(self, which: Pass, group: int, chip: str, samples: int) -> float:
        """By how much the chip is slower than the analytic costs say, where it was measured at other kinds of work."""
        alone = Degrees()
        kinds: tuple[Kind, ...] = ("dense", "experts")
        ratios = [
            self._work_out(which, group, kind, alone, samples) / self._expect(which, group, kind, alone, samples)
            for kind in kinds
            if (chip, kind) in self._curves
        ]
        return fmean(ratios) if ratios else 1.0

    def _doubts(self, chip: str, kind: Kind, degrees: Degrees, samples: int) -> list[str]:
        curves = self._curves.get((chip, kind))
        if not curves:
            scaled = any(key[0] == chip for key in self._curves)
            how = "analytic, scaled by what was" if scaled else "analytic"
            return [f"{_words(kind)} of {chip} was not measured: {how}"]
        point = _nearest(curves, _point(degrees))
        found = []
        if point != _point(degrees):
            found.append(f"{chip} at {_say(_point(degrees))} was not measured: scaled from {_say(point)}")
        sizes = curves[point].samples
        if not sizes[0] <= samples <= sizes[-1]:
            spread = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f"{sizes[0]} only"
            found.append(f"WARNING: {chip} was measured with micro-batches of {spread}; {samples} is extrapolated")
        return found

    def _chip(self, group: int) -> str:
        return self.machine.groups[group].chip

    def _hosts(self, sender: Side, receiver: Side) -> int:
        size = self.machine.groups[sender.group].node_size
        return 1 if sender.degrees.size + receiver.degrees.size <= size else 2

    def _is_measured(self, a: Side, b: Side) -> bool:
        if a.group == b.group:
            return (self._chip(a.group), self._hosts(a, b)) in self._own_links
        pair = {self._chip(a.group), self._chip(b.group)}
        return any({row.chip, row.other} == pair for row in _links_between(self.machine, self.profile))

    @cached_property
    def _kinds(self) -> tuple[Kind, ...]:
        shape = self.analytic.work.shape
        layers: set[Kind] = {"experts" if shape.has_experts(layer) else "dense" for layer in range(shape.layers)}
        return ("embedding", *sorted(layers), "head")

    @cached_property
    def _curves(self) -> dict[tuple[str, Kind], dict[Point, Curve]]:
        shape = self.analytic.work.shape
        found: dict[tuple[str, Kind, Point, int], list[LayerRow]] = {}
        for row in self.profile.layers:
            kind: Kind = row.kind or ("experts" if shape.has_experts(row.layer or 0) else "dense")
            found.setdefault((row.chip, kind, (row.tp, row.cp, row.ep, row.sp), row.micro_batch), []).append(row)
        curves: dict[tuple[str, Kind], dict[Point, Curve]] = {}
        for chip, kind, point in dict.fromkeys(key[:3] for key in found):
            sizes = sorted(key[3] for key in found if key[:3] == (chip, kind, point))
            rows = [found[chip, kind, point, size] for size in sizes]
            curves.setdefault((chip, kind), {})[point] = Curve(
                tuple(sizes),
                tuple(fmean(row.forward_s for row in its) for its in rows),
                tuple(fmean(row.backward_s for row in its) for its in rows),
                tuple(its[-1].activation_bytes for its in rows),
            )
        return curves

    @cached_property
    def _own_links(self) -> dict[tuple[str, int], Link]:
        rows = (row for row in self.profile.links if row.chip == row.other)
        return {(row.chip, row.hosts): Link(row.latency_s, row.bytes_per_s) for row in rows}

    @cached_property
    def _overheads(self) -> dict[str, float]:
        return {row.chip: row.step_s for row in self.profile.overheads}

    @cached_property
    def _optimizers(self) -> dict[str, tuple[float, float]]:
        chips = dict.fromkeys(row.chip for row in self.profile.optimizer)
        return {chip: fit_line([row for row in self.profile.optimizer if row.chip == chip]) for chip in chips}


def interpolate(samples: Sequence[int], values: Sequence[float], wanted: int) -> float | None:
    """Piecewise linear; beyond the ends along the last segment, never falling, nor above proportion below the first.

    None when a single point is not at ``wanted``.
    """
    if wanted in samples:
        return values[samples.index(wanted)]
    if len(samples) == 1:
        return None
    right = min(max(bisect_left(samples, wanted), 1), len(samples) - 1)
    low, high = samples[right - 1], samples[right]
    slope = (values[right] - values[right - 1]) / (high - low)
    if low < wanted < high:
        return values[right - 1] + slope * (wanted - low)
    slope = max(slope, 0.0)
    if wanted < low:
        return max(values[0] - slope * (low - wanted), values[0] * wanted / low)
    return values[right] + slope * (wanted - high)


def fit_line(rows: Sequence[OptimizerRow]) -> tuple[float, float]:
    """(seconds, seconds per parameter) by least squares, neither below 0; one point: in proportion."""
    mean_x, mean_y = fmean(row.parameters for row in rows), fmean(row.seconds for row in rows)
    spread = sum((row.parameters - mean_x) ** 2 for row in rows)
    if spread == 0:
        return 0.0, mean_y / mean_x
    slope = sum((row.parameters - mean_x) * (row.seconds - mean_y) for row in rows) / spread
    if slope < 0:
        return mean_y, 0.0
    start = mean_y - slope * mean_x
    return (start, slope) if start >= 0 else (0.0, mean_y / mean_x)


def with_measured_links(machine: Machine, profile: Profile) -> Machine:
    """The machine with rings and links between kinds of chips as measured."""
    groups = []
    for group in machine.groups:
        rings = [row for row in profile.collectives if row.chip == group.chip]
        for hosts, name in ((1, "link"), (2, "network")):
            found = [row for row in rings if row.hosts == hosts]
            if found:
                widest = max(found, key=lambda row: row.ranks)
                group = replace(group, **{name: Link(widest.latency_s, widest.bytes_per_s)})  # type: ignore[arg-type]
        groups.append(group)
    chips = [group.chip for group in machine.groups]
    between = dict(machine.between)
    for row in _links_between(machine, profile):
        a, b = chips.index(row.chip), chips.index(row.other)
        between[a, b] = between[b, a] = Link(row.latency_s, row.bytes_per_s)
    return replace(machine, groups=tuple(groups), between=between)


def _links_between(machine: Machine, profile: Profile) -> list[LinkRow]:
    """Measured links between unlike chips; those inside a host say nothing about chips on several hosts."""
    chips = [group.chip for group in machine.groups]
    pairs = [(i, j) for i in range(len(chips)) for j in range(len(chips)) if i != j]
    on_one_host = all(pair in machine.between for pair in pairs)
    return [
        row
        for row in profile.links
        if row.chip != row.other and row.chip in chips and row.other in chips and (row.hosts > 1 or on_one_host)
    ]


def _point(degrees: Degrees) -> Point:
    return degrees.tp, degrees.cp, degrees.ep, degrees.sp


def _degrees(point: Point) -> Degrees:
    tp, cp, ep, sp = point
    return Degrees(tp=tp, cp=cp, ep=ep, sp=sp, dp=max(1, ep // cp))


def _nearest(curves: dict[Point, Curve], wanted: Point) -> Point:
    """The measured degrees that are most like those wanted: tp counts most."""

    def distance(point: Point) -> tuple[float, ...]:
        ratios = [max(a, b) / min(a, b) for a, b in zip(point[:3], wanted[:3], strict=True)]
        return (*ratios, float(point[3] != wanted[3]))

    return min(curves, key=distance)


def _say(point: Point) -> str:
    tp, cp, ep, sp = point
    words = [f"tp {tp}", *([f"cp {cp}"] if cp > 1 else []), *([f"ep {ep}"] if ep > 1 else [])]
    return " ".join([*words, *(["sp"] if sp else [])])


def _words(kind: Kind) -> str:
    return f"the {kind}" if kind in ("embedding", "head") else f"a layer ({kind})"
