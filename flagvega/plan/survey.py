"""From a cluster and what its owner says about it to the machine that the planner sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from flagvega.cluster.nodes import Cluster
from flagvega.cluster.source import where_of
from flagvega.config.spec import Spec
from flagvega.errors import ConfigError, Fault
from flagvega.plan.machine import (
    DEFAULT_LINK_BYTES_PER_S,
    DEFAULT_NETWORK_BYTES_PER_S,
    LINK_LATENCY_S,
    NETWORK_LATENCY_S,
    Group,
    Link,
    Machine,
)
from flagvega.platform import Chip, find_chip

_GIB = 2**30


@dataclass(frozen=True)
class _Said:
    """What the entries of ``cluster.nodes`` say of a chip."""

    chip: str
    values: Mapping[str, float]
    """Of several entries, the least."""
    places: Mapping[str, str]
    place: str
    """Of the chip itself."""
    how: str
    """How to write a figure that is missing."""


def survey(spec: Spec, cluster: Cluster, dtype: str | None) -> Machine:
    """The machine; ConfigError with every chip and link that lacks a figure, and what to write.

    ``dtype`` is None where only the faults that do not depend on it are wanted.

    Facts come from the ``cluster`` block, else from the chip's data sheet; links that nobody tells are assumed.
    """
    block = spec.blocks.get("cluster", {})
    faults: list[Fault] = []
    assumed: list[str] = []
    chips = list(dict.fromkeys(chip for node in cluster.nodes for chip in node.devices))
    groups = [_group(_said(spec, chip), cluster, dtype, faults, assumed) for chip in chips]
    named = {chip for entry in block.get("nodes", ()) for chip in _names_of(entry["chip"])} | set(chips)
    between = _between(block.get("links", ()), chips, named, spec, faults)
    if faults:
        raise ConfigError(faults)
    if sum(bool(node.devices) for node in cluster.nodes) == 1:
        between = _one_host([group for group in groups if group]) | between
    return Machine(tuple(group for group in groups if group), between, tuple(assumed))


def _said(spec: Spec, chip: str) -> _Said:
    values: dict[str, float] = {}
    places: dict[str, str] = {}
    place = ""
    for i, entry in enumerate(spec.blocks.get("cluster", {}).get("nodes", ())):
        if chip not in _names_of(entry["chip"]):
            continue
        place = place or where_of(spec, f"cluster.nodes[{i}].chip")
        for key, value in entry.items():
            if isinstance(value, int | float) and key not in ("count", "devices") and value <= values.get(key, inf):
                values[key], places[key] = value, where_of(spec, f"cluster.nodes[{i}].{key}")
    if place:
        return _Said(chip, values, places, place, f"beside 'chip: {chip}'")
    how = f"in a cluster block: cluster: {{nodes: [{{host: ..., chip: {chip}, devices: ..., <here>}}]}}"
    return _Said(chip, values, places, spec.where.get("experiment.runner.hostfile", "cluster"), how)


def _names_of(written: str) -> tuple[str, ...]:
    """The chip that is meant; none when there is no such chip, which is told elsewhere."""
    try:
        return (find_chip(written).name,)
    except ConfigError:
        return ()


def _group(said: _Said, cluster: Cluster, dtype: str | None, faults: list[Fault], assumed: list[str]) -> Group | None:
    chip, facts, values = said.chip, find_chip(said.chip), said.values
    counts = tuple(count for node in cluster.nodes if (count := node.devices.count(chip)))
    num_faults = len(faults)
    for key, said_value in values.items():
        if key == "price_per_hour" and said_value < 0:
            faults.append(Fault(f"price_per_hour of {chip} is {said_value:g}", said.places[key], "write 0 or more"))
        elif key != "price_per_hour" and said_value <= 0:
            fix = "write what is there, above 0, or leave it out"
            faults.append(Fault(f"{key} of {chip} is {said_value:g}", said.places[key], fix))
    memory = values["memory_gib"] * _GIB if "memory_gib" in values else facts.memory_bytes
    flops = values["tflops"] * 1e12 if "tflops" in values else _peak(facts, dtype)
    bandwidth = values["bandwidth_gb_s"] * 1e9 if "bandwidth_gb_s" in values else facts.memory_bytes_per_s
    for value, key, words in (
        (memory, "memory_gib", "no memory size"),
        (flops, "tflops", f"no peak rate in {dtype}"),
        (bandwidth, "bandwidth_gb_s", "no memory bandwidth"),
    ):
        if value is None and (key != "tflops" or dtype):
            faults.append(Fault(f"{words} is known of {chip}", said.place, f"write {key} {said.how}"))
    if len(faults) > num_faults or memory is None or flops is None or bandwidth is None:
        return None
    link = values["link_gb_s"] * 1e9 if "link_gb_s" in values else facts.link_bytes_per_s
    if link is None:
        link = DEFAULT_LINK_BYTES_PER_S
        if max(counts) > 1:
            assumed.append(f"devices of a host of {chip}: {link / 1e9:g} GB/s each (write link_gb_s)")
    network = values["network_gb_s"] * 1e9 if "network_gb_s" in values else None
    if network is None:
        network = min(link, DEFAULT_NETWORK_BYTES_PER_S)
        if sum(bool(node.devices) for node in cluster.nodes) > 1:
            assumed.append(f"network of {chip}: {network / 1e9:g} GB/s a device (write network_gb_s)")
    return Group(
        chip, counts, round(memory), flops, bandwidth, Link(LINK_LATENCY_S, link), Link(NETWORK_LATENCY_S, network),
        values.get("price_per_hour", 0.0),
    )  # fmt: skip


def _peak(chip: Chip, dtype: str | None) -> float | None:
    """Matrix units take fp32 as tf32 only where asked to, which nobody does here."""
    return (chip.peak_flops or {}).get(dtype) if dtype else None


def _between(links: Sequence[Mapping[str, Any]], chips: list[str], named: set[str], spec: Spec,
             faults: list[Fault]) -> dict[tuple[int, int], Link]:  # fmt: skip
    """Links by pairs of groups; those of chips that are not to be used are left out."""
    found: dict[tuple[int, int], Link] = {}
    for i, link in enumerate(links):
        where = where_of(spec, f"cluster.links[{i}].between")
        if link["gb_s"] <= 0:
            place = where_of(spec, f"cluster.links[{i}].gb_s")
            faults.append(Fault(f"gb_s is {link['gb_s']:g}", place, "write the rate of the link, above 0"))
        if link["latency_us"] < 0:
            place = where_of(spec, f"cluster.links[{i}].latency_us")
            faults.append(Fault(f"latency_us is {link['latency_us']:g}", place, "write 0 or more"))
        pair: list[str] = []
        for name in link["between"]:
            try:
                pair.append(find_chip(name).name)
            except ConfigError as error:
                faults += [replace(fault, where=where) for fault in error.faults]
        if len(pair) < len(link["between"]):
            continue
        if len(pair) != 2 or pair[0] == pair[1]:
            what = f"a link is between two kinds of chips, not {' and '.join(pair)}"
            faults.append(Fault(what, where, "links between hosts of one kind: network_gb_s of their nodes"))
        elif absent := [name for name in pair if name not in named]:
            what = f"there is no {absent[0]} in the cluster"
            faults.append(Fault(what, where, f"there is: {', '.join(sorted(named))}"))
        elif all(name in chips for name in pair):
            a, b = (chips.index(name) for name in pair)
            found[a, b] = found[b, a] = Link(link["latency_us"] * 1e-6, link["gb_s"] * 1e9)
    return found


def _one_host(groups: list[Group]) -> dict[tuple[int, int], Link]:
    """On one host unlike chips meet over the slower of their links."""
    return {
        (i, j): Link(NETWORK_LATENCY_S, min(a.link.bytes_per_s, b.link.bytes_per_s))
        for i, a in enumerate(groups)
        for j, b in enumerate(groups)
        if i != j
    }
