"""Is this host ready? Asked before anything starts."""

from __future__ import annotations

import errno
import socket
from collections import Counter
from contextlib import suppress

import psutil

from flagvega.cluster.nodes import Node
from flagvega.errors import Fault
from flagvega.launch.rendezvous import Rendezvous
from flagvega.platform import detect_devices, find_chip, platforms


def check_port(rendezvous: Rendezvous) -> list[Fault]:
    """Whether host 0 can listen where the others will look for it."""
    if not rendezvous.port or rendezvous.node != 0:
        return []
    where = f"{rendezvous.address}:{rendezvous.port}"
    try:
        with socket.create_server((rendezvous.address, rendezvous.port), family=_family(rendezvous.address)):
            return []
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            fix = "give another experiment.runner.master_port, or end what listens there"
            return [Fault(f"the port is in use{_port_owner(rendezvous.port)}", where, fix)]
        fix = "experiment.runner.master_addr must be an address of host 0, which this host is"
        return [Fault(f"cannot listen here: {error.strerror}", where, fix)]


def check_devices(node: Node) -> list[Fault]:
    """Whether the chips that the plan counts on are here.

    A platform without a variable to select devices has none that could be missing.
    """
    faults = []
    for name, wanted in Counter(node.devices).items():
        chip = find_chip(name)
        platform = platforms.get(chip.vendor)
        if platform.collective_backend == "none":
            faults.append(Fault(f"chip '{name}' runs nothing", node.host, "action=dryrun shows the plan"))
        elif platform.visible_devices_env:
            here = sum(device.chip == chip.name for device in platform.detect())
            if here < wanted:
                fix = f"here: {_chips_here()}; cluster.nodes or the hostfile says what is wanted"
                faults.append(Fault(f"{wanted} x {chip.name} wanted, {here} found", node.host, fix))
    return faults


def _chips_here() -> str:
    return ", ".join(f"{count} x {chip}" for chip, count in Counter(each.chip for each in detect_devices()).items())


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _port_owner(port: int) -> str:
    with suppress(psutil.AccessDenied):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,) and connection.pid:
                return f" by process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return ""
