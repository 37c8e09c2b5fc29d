"""From a cluster and what its owner says about it to the machine that the planner sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flagvega.cluster.nodes import Cluster
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


def survey(spec: Spec, cluster: Cluster, dtype: str) -> Machine:
    """The machine; ConfigError with every chip and link that lacks a figure, and what to write.

    Facts come from the ``cluster`` block, else from the chip's data sheet; links that nobody tells are assumed.
    """
    block = spec.blocks.get("cluster", {})
    entries: Sequence[Mapping[str, Any]] = block.get("nodes", ())
    faults: list[Fault] = []
    assumed: list[str] = []
    chips = list(dict.fromkeys(chip for node in cluster.nodes for chip in node.devices))
    groups = [_group(chip, cluster, _said(entries, chip), dtype, faults, assumed) for chip in chips]
    between = _between(block.get("links", ()), chips, spec, faults)
    if faults:
        raise ConfigError(faults)
    if len(cluster.nodes) == 1:
        between = _one_host([group for group in groups if group]) | between
    return Machine(tuple(group for group in groups if group), between, tuple(assumed))


def _said(entries: Sequence[Mapping[str, Any]], chip: str) -> dict[str, float]:
    """What the entries of a chip say: of several, the least."""
    said: dict[str, float] = {}
    for entry in entries:
        if find_chip(entry["chip"]).name == chip:
            for key, value in entry.items():
                if isinstance(value, int | float) and key not in ("count", "devices"):
                    said[key] = min(value, said.get(key, value))
    return said


def _group(chip: str, cluster: Cluster, said: Mapping[str, float], dtype: str, faults: list[Fault],
           assumed: list[str]) -> Group | None:  # fmt: skip
    facts = find_chip(chip)
    counts = tuple(count for node in cluster.nodes if (count := node.devices.count(chip)))
    zero = [key for key, value in said.items() if value <= 0 and key != "price_per_hour"]
    for key in zero:
        faults.append(Fault(f"{key} of {chip} is {said[key]:g}", "cluster.nodes", "write what is there, above 0"))
    memory = said["memory_gib"] * _GIB if "memory_gib" in said else facts.memory_bytes
    flops = said["tflops"] * 1e12 if "tflops" in said else _peak(facts, dtype)
    bandwidth = said["bandwidth_gb_s"] * 1e9 if "bandwidth_gb_s" in said else facts.memory_bytes_per_s
    for value, key, words in (
        (memory, "memory_gib", "no memory size"),
        (flops, "tflops", f"no peak rate in {dtype}"),
        (bandwidth, "bandwidth_gb_s", "no memory bandwidth"),
    ):
        if value is None:
            fix = f"write {key} beside 'chip: {chip}' under cluster.nodes"
            faults.append(Fault(f"{words} is known of {chip}", "cluster", fix))
    if zero or memory is None or flops is None or bandwidth is None:
        return None
    link = said["link_gb_s"] * 1e9 if "link_gb_s" in said else facts.link_bytes_per_s
    if link is None:
        link = DEFAULT_LINK_BYTES_PER_S
        if max(counts) > 1:
            assumed.append(f"devices of a host of {chip}: {link / 1e9:g} GB/s each (write link_gb_s)")
    network = said["network_gb_s"] * 1e9 if "network_gb_s" in said else None
    if network is None:
        network = min(link, DEFAULT_NETWORK_BYTES_PER_S)
        if len(cluster.nodes) > 1:
            assumed.append(f"network of {chip}: {network / 1e9:g} GB/s a device (write network_gb_s)")
    return Group(
        chip, counts, round(memory), flops, bandwidth, Link(LINK_LATENCY_S, link), Link(NETWORK_LATENCY_S, network),
        said.get("price_per_hour", 0.0),
    )  # fmt: skip


def _peak(chip: Chip, dtype: str) -> float | None:
    """Matrix units take fp32 as tf32 only where asked to, which nobody does here."""
    return (chip.peak_flops or {}).get(dtype)


def _between(links: Sequence[Mapping[str, Any]], chips: list[str], spec: Spec,
             faults: list[Fault]) -> dict[tuple[int, int], Link]:  # fmt: skip
    found: dict[tuple[int, int], Link] = {}
    for i, link in enumerate(links):
        where = spec.where.get(f"cluster.links[{i}]", f"cluster.links[{i}]")
        names = list(link["between"])
        if len(names) != 2:
            faults.append(Fault(f"a link is between two kinds of chips, not {len(names)}", where))
            continue
        if link["gb_s"] <= 0:
            faults.append(Fault(f"gb_s is {link['gb_s']:g}", where, "write the rate of the link, above 0"))
            continue
        pair = [find_chip(name).name for name in names]
        absent = [name for name in pair if name not in chips]
        if absent:
            faults.append(Fault(f"there is no {absent[0]} in the cluster", where, f"there is: {', '.join(chips)}"))
            continue
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
