"""What is on this host: devices, drivers, versions, cores, memory, links. Imports no torch."""

from __future__ import annotations

import importlib.metadata
import os
import platform as host
import socket
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Group, RenderableType
from rich.table import Table

from flagvega.platform import FoundDevice, detect_devices, platforms

_PACKAGES = ("flagvega", "torch", "megatron-core", "numpy", "hydra-core", "transformer-engine", "flash-attn", "vllm")
_INFINIBAND = Path("/sys/class/infiniband")
_GIB = 2**30


@dataclass(frozen=True)
class Network:
    """A network interface that is up."""

    name: str
    bits_per_s: float | None
    """None where the driver does not tell."""


@dataclass(frozen=True)
class HostFacts:
    """Everything that ``action=env`` shows."""

    host: str
    system: str
    python: str
    num_cores: int
    """Cores that this process may use."""
    memory_bytes: int
    devices: tuple[FoundDevice, ...]
    links: tuple[str, ...]
    """How each device is connected; empty where its vendor's tool does not tell."""
    networks: tuple[Network, ...]
    versions: dict[str, str] = field(default_factory=dict)
    """Packages of ours by name; those that are not installed are left out."""
    vendors: dict[str, dict[str, str]] = field(default_factory=dict)
    """Drivers and packages of each vendor that is here."""
    untested: tuple[str, ...] = ()
    """Vendors that are here and that we have never run on."""


def probe_host() -> HostFacts:
    """Look at this host; takes seconds where a vendor's own torch has to be asked for its devices."""
    devices = tuple(detect_devices())
    vendors = tuple(dict.fromkeys(device.vendor for device in devices))
    return HostFacts(
        host=socket.gethostname(),
        system=host.platform(),
        python=host.python_version(),
        num_cores=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        devices=devices,
        links=tuple(platforms.get(device.vendor).link(device.index) for device in devices),
        networks=(*_list_interfaces(), *_list_infiniband(_INFINIBAND)),
        versions=_installed(_PACKAGES),
        vendors={vendor: dict(platforms.get(vendor).versions()) for vendor in vendors},
        untested=tuple(vendor for vendor in vendors if not platforms.get(vendor).tested),
    )


def facts_to_json(facts: HostFacts) -> dict[str, Any]:
    """The facts as one JSON object."""
    return asdict(facts)


def render_facts(facts: HostFacts) -> RenderableType:
    """The facts as tables for a terminal."""
    return Group(_host_table(facts), _device_table(facts), *([_link_table(facts)] if facts.networks else []))


def _host_table(facts: HostFacts) -> Table:
    table = Table("what", "value", title=f"host {facts.host}", title_justify="left")
    rows = {
        "system": facts.system,
        "cores": str(facts.num_cores),
        "memory": f"{facts.memory_bytes / _GIB:.1f} GiB",
        "python": facts.python,
        **facts.versions,
    }
    for vendor, versions in facts.vendors.items():
        rows |= {f"{vendor}: {name}": version for name, version in versions.items()}
    for what, value in rows.items():
        table.add_row(what, value)
    return table


def _device_table(facts: HostFacts) -> Table:
    caption = f"untested on hardware by us: {', '.join(facts.untested)}" if facts.untested else None
    table = Table("device", "chip", "name", "memory", "link", title="devices", title_justify="left", caption=caption)
    for device, link in zip(facts.devices, facts.links, strict=True):
        memory = f"{device.memory_bytes / _GIB:.1f} GiB" if device.memory_bytes else "unknown"
        table.add_row(f"{device.vendor} {device.index}", device.chip, device.name, memory, link or "unknown")
    return table


def _link_table(facts: HostFacts) -> Table:
    table = Table("network", "rate", title="networks", title_justify="left")
    for network in facts.networks:
        table.add_row(network.name, f"{network.bits_per_s / 1e9:g} Gb/s" if network.bits_per_s else "unknown")
    return table


def _list_interfaces() -> list[Network]:
    stats = psutil.net_if_stats()
    return [
        Network(name, stats[name].speed * 1e6 or None)
        for name in sorted(stats)
        if stats[name].isup and "loopback" not in stats[name].flags
    ]


def _list_infiniband(folder: Path) -> list[Network]:
    """Ports by the rate in their file: ``400 Gb/sec (4X NDR)``."""
    rates = sorted(folder.glob("*/ports/*/rate"))
    return [Network(rate.parts[-4] + "/" + rate.parts[-2], float(rate.read_text().split()[0]) * 1e9) for rate in rates]


def _installed(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
