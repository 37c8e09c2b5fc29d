"""What an engine says of itself in Prometheus' form, as what happened between two looks."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

LINE: Final = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)")
EDGE: Final = re.compile(r'(?:^|,)le="([^"]*)"')
GAUGES: Final = ("running", "waiting", "kv_share")
COUNTERS: Final = ("requests", "prompt_tokens", "output_tokens")
TIMES: Final = ("first_token_s", "per_token_s")
"""Histograms."""


@dataclass(frozen=True)
class Scrape:
    """The series of one look at ``/metrics``, each summed over its labels."""

    values: Mapping[str, float] = field(default_factory=dict)
    buckets: Mapping[str, Mapping[float, float]] = field(default_factory=dict)
    """Of histograms: how many observations were up to each edge."""


def parse(text: str) -> Scrape:
    """Prometheus' text form; what is no number is passed over."""
    values: dict[str, float] = {}
    buckets: dict[str, dict[float, float]] = {}
    for line in text.splitlines():
        match = None if line.startswith("#") else LINE.match(line)
        if match is None:
            continue
        name, labels, number = match[1], match[2] or "", _number(match[3])
        if not math.isfinite(number):
            continue
        if name.endswith("_bucket") and (edge := EDGE.search(labels)):
            found = buckets.setdefault(name.removesuffix("_bucket"), {})
            at = _number(edge[1])
            found[at] = found.get(at, 0.0) + number
        else:
            values[name] = values.get(name, 0.0) + number
    return Scrape(values, buckets)


def rise(before: Scrape, now: Scrape) -> Scrape:
    """What counters and histograms grew by between two looks; one that fell began anew with its process."""
    values = {}
    for name, value in now.values.items():
        old = before.values.get(name, 0.0)
        values[name] = value - old if value >= old else value
    buckets = {}
    for name, edges in now.buckets.items():
        old_edges = before.buckets.get(name, {})
        if any(count < old_edges.get(edge, 0.0) for edge, count in edges.items()):
            old_edges = {}
        buckets[name] = {edge: count - old_edges.get(edge, 0.0) for edge, count in edges.items()}
    return Scrape(values, buckets)


def add(one: Scrape, other: Scrape) -> Scrape:
    """Both together."""
    buckets = {name: _sum(one.buckets.get(name, {}), edges) for name, edges in other.buckets.items()}
    return Scrape(_sum(one.values, other.values), {**one.buckets, **buckets})


def gauges(now: Scrape, names: Mapping[str, str]) -> dict[str, float]:
    """What an engine is at, by our names; ``names`` are its own."""
    found = {name: now.values.get(names.get(name, "")) for name in GAUGES}
    return {name: round(value, 4) for name, value in found.items() if value is not None}


def describe(grown: Scrape, seconds: float, names: Mapping[str, str]) -> dict[str, Any]:
    """What happened in so many seconds, by our names; ``names`` are the engine's own."""
    found: dict[str, Any] = {}
    for name in COUNTERS:
        value = grown.values.get(names.get(name, ""), 0.0)
        found[f"num_{name}"] = round(value)
        found[f"{name}_per_s"] = round(value / seconds, 3) if seconds else 0.0
    asked = grown.values.get(names.get("prefix_queries", ""), 0.0)
    found["prefix_share"] = round(grown.values.get(names.get("prefix_hits", ""), 0.0) / asked, 4) if asked else None
    for name in TIMES:
        found[name] = _quantiles(grown.buckets.get(names.get(name, ""), {}))
    return found


def find_label(text: str, label: str) -> str | None:
    """The value of the first label of this name."""
    match = re.search(rf'[{{,]{re.escape(label)}="([^"]*)"', text)
    return match[1] if match else None


def _sum(one: Mapping[Any, float], other: Mapping[Any, float]) -> dict[Any, float]:
    return {name: one.get(name, 0.0) + other.get(name, 0.0) for name in {**one, **other}}


def _quantiles(counts: Mapping[float, float]) -> dict[str, float] | None:
    """Median and 99 % of a histogram; None where it is empty."""
    rises = sorted(counts.items())
    if not rises or rises[-1][1] <= 0:
        return None
    return {name: round(_quantile(rises, share), 5) for name, share in (("p50", 0.5), ("p99", 0.99))}


def _quantile(rises: list[tuple[float, float]], share: float) -> float:
    """Between the edges of its bucket in proportion; the last finite edge where it is beyond that."""
    wanted, low, below = share * rises[-1][1], 0.0, 0.0
    for edge, count in rises:
        if count >= wanted and count > below:
            return low if math.isinf(edge) else low + (edge - low) * (wanted - below) / (count - below)
        low, below = edge, count
    return low


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
