"""Tables of measured costs, and a line for each measurement as it comes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from flagvega.plan.profile import Profile
from flagvega.report.planning import seconds

_MIB = 2**20


def layers_table(profile: Profile) -> Table:
    """A row for each part of the model on each chip, at each degree and micro-batch."""
    names = ("chip", "tp", "sp", "micro-batch", "part", "forward", "backward", "saved")
    table = Table(*names, title="parts of the model", title_justify="left", box=SIMPLE_HEAD)
    for row in profile.layers:
        saved = "" if row.activation_bytes is None else f"{row.activation_bytes / _MIB:.3g} MiB"
        part = row.kind or f"layer {row.layer}"
        table.add_row(
            row.chip, str(row.tp), "yes" if row.sp else "", str(row.micro_batch), part, seconds(row.forward_s),
            seconds(row.backward_s), saved,
        )  # fmt: skip
    return table


def optimizer_table(profile: Profile) -> Table:
    """A row for each size that was measured."""
    table = Table("chip", "parameters", "step", title="optimizer", title_justify="left", box=SIMPLE_HEAD)
    for row in profile.optimizer:
        table.add_row(row.chip, f"{row.parameters:,.0f}", seconds(row.seconds))
    return table


def links_table(profile: Profile) -> Table:
    """A row for each pair of chips, and for each ring."""
    names = ("between", "what", "start-up", "rate")
    table = Table(*names, title="links", title_justify="left", box=SIMPLE_HEAD)
    for link in profile.links:
        table.add_row(f"{link.chip} and {link.other}", "message", seconds(link.latency_s), _rate(link.bytes_per_s))
    for ring in profile.collectives:
        table.add_row(f"{ring.ranks} x {ring.chip}", "ring", seconds(ring.latency_s), _rate(ring.bytes_per_s))
    return table


def answer_line(answer: Mapping[str, Any]) -> str:
    """One measurement in words."""
    what = answer["what"]
    if what == "link":
        pair = f"{answer['chip']} and {answer['other']}"
        return f"messages between {pair}: {seconds(answer['latency_s'])} + bytes at {_rate(answer['bytes_per_s'])}"
    if what == "ring":
        return f"ring of {len(answer['ranks'])} x {answer['chip']}: {_rate(answer['bytes_per_s'])}"
    if what == "step":
        return f"what all ranks tell each other in a step: {seconds(answer['step_s'])}"
    place = f"{answer['chip']} tp {answer['tp']} micro-batch {answer['micro_batch']}"
    if "skipped" in answer:
        return f"{place}: {answer['skipped']}"
    if "parameters" in answer:
        return f"{answer['chip']} optimizer, {answer['parameters']:,} parameters: {seconds(answer['seconds'])}"
    return f"{place} {answer['kind']}: {seconds(answer['forward_s'])} forward, {seconds(answer['backward_s'])} backward"


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:.3g} GB/s"
