"""Several hosts' ``action=env output=json`` as one cluster file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from flagvega.errors import ConfigError, Fault

_GIB = 2**30
_FIX = "write it on that host: python run.py action=env output=json > HOST.json"


@dataclass(frozen=True)
class Host:
    """What one file tells of its host."""

    name: str
    runs: tuple[tuple[str, int, float | None], ...]
    """(chip, devices, GiB of a device or None) in the order of the devices."""
    network_gb_s: float | None
    """For each device; None where no network tells its rate."""


def merge_hosts(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Entries for ``cluster.nodes``, hosts alike put together; ConfigError with every file that is no host's."""
    faults: list[Fault] = []
    hosts: dict[str, Host] = {}
    places: dict[str, Path] = {}
    for path in paths:
        try:
            host = _read_host(path)
        except ConfigError as error:
            faults += error.faults
            continue
        if host.name in hosts:
            fix = f"it is in {places[host.name]} already; give each host's file once"
            faults.append(Fault(f"host {host.name} comes twice", str(path), fix))
        hosts.setdefault(host.name, host)
        places.setdefault(host.name, path)
    if faults:
        raise ConfigError(faults)
    alike: dict[tuple[Any, ...], list[str]] = {}
    for host in hosts.values():
        alike.setdefault((host.runs, host.network_gb_s), []).append(host.name)
    return [
        _entry(names, chip, devices, memory_gib, network_gb_s)
        for (runs, network_gb_s), names in alike.items()
        for chip, devices, memory_gib in runs
    ]


def render_cluster(entries: Sequence[Mapping[str, Any]]) -> str:
    """The entries as a cluster file."""
    lines = ["# Written by action=env merge=...; check the networks, and add what no driver tells.", "nodes:"]
    for entry in entries:
        text = yaml.safe_dump(dict(entry), default_flow_style=True, sort_keys=False, width=10**6).strip()
        lines.append(f"  - {text}")
    if any("network_gb_s" not in entry for entry in entries):
        lines.append(
            "# network_gb_s, in GB/s for each device and direction, is missing where no network told its rate."
        )
    chips = list(dict.fromkeys(entry["chip"] for entry in entries))
    if len(chips) > 1:
        lines += [
            "# Unlike chips meet over the slower of their networks; where that is not so:",
            "# links:",
            f"#   - {{between: [{chips[0]}, {chips[1]}], gb_s: 5, latency_us: 100}}",
        ]
    return "\n".join(lines)


def _entry(
    names: Sequence[str], chip: str, devices: int, memory_gib: float | None, network_gb_s: float | None
) -> dict[str, Any]:
    entry: dict[str, Any] = {"host": names[0]} if len(names) == 1 else {"hosts": list(names)}
    entry |= {"chip": chip, "devices": devices}
    facts = {"memory_gib": memory_gib, "network_gb_s": network_gb_s}
    return entry | {key: value for key, value in facts.items() if value is not None}


def _read_host(path: Path) -> Host:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(Fault(f"cannot be read: {error}", str(path), _FIX)) from error
    try:
        devices = [(str(device["chip"]), device.get("memory_bytes")) for device in facts["devices"]]
        name = str(facts["host"])
        rates = {str(network["name"]): network["bits_per_s"] for network in facts["networks"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(Fault("is not what action=env output=json prints", str(path), _FIX)) from error
    if not devices:
        raise ConfigError(Fault(f"host {name} has no devices", str(path), "leave it out"))
    runs = []
    for chip, its in groupby(devices, key=lambda device: device[0]):
        sizes = [size for _, size in its]
        known = all(isinstance(size, int) and size > 0 for size in sizes)
        runs.append((chip, len(sizes), int(min(sizes) / _GIB * 10) / 10 if known else None))
    bits_per_s = _network(rates)
    return Host(name, tuple(runs), round(bits_per_s / 8e9 / len(devices), 3) if bits_per_s else None)


def _network(rates: Mapping[str, float | None]) -> float:
    """What a host's traffic goes over: all ports of its InfiniBand (``card/port``), else the fastest interface."""
    known = {name: rate for name, rate in rates.items() if isinstance(rate, int | float) and rate > 0}
    ports = [rate for name, rate in known.items() if "/" in name]
    return sum(ports) if ports else max(known.values(), default=0.0)
