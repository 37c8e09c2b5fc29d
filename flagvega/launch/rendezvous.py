"""Which host of the job this is, and where the ranks of all hosts meet."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil

from flagvega.config.spec import Runner
from flagvega.errors import ConfigError, Fault

DEFAULT_PORT = 29500
NODE_RANK_ENVS = ("NODE_RANK", "PET_NODE_RANK", "GROUP_RANK", "RANK")
ADDRESS_ENVS = ("MASTER_ADDR", "PET_MASTER_ADDR")
PORT_ENVS = ("MASTER_PORT", "PET_MASTER_PORT")
LOOPBACK = "127.0.0.1"
GLOO_INTERFACE_ENV = "GLOO_SOCKET_IFNAME"


@dataclass(frozen=True)
class Rendezvous:
    """The meeting point of a job's hosts. A job of one host may leave the port open (0)."""

    num_nodes: int = 1
    node: int | None = 0
    """Which of the job's hosts this is, in their order; None when it cannot be told."""
    address: str = LOOPBACK
    port: int = 0


def find_rendezvous(runner: Runner, hosts: Mapping[int, str], environ: Mapping[str, str]) -> Rendezvous:
    """From ``experiment.runner``, else from the variables that clusters and torchrun set, else from host names.

    ``hosts`` are those that the job uses, by their index in the cluster, which is what users number them by.
    """
    nodes = list(hosts)
    node = runner.node_rank
    if node is None and len(hosts) > 1:
        node = _number(environ, NODE_RANK_ENVS)
    if node is None:
        node = next((index for index, host in hosts.items() if is_this_host(host)), None)
    if node is not None and node not in hosts:
        what, where = f"the plan has no devices of a host {node}", "experiment.runner.node_rank"
        raise ConfigError(Fault(what, where, f"it uses {', '.join(f'{i} ({host})' for i, host in hosts.items())}"))
    position = None if node is None else nodes.index(node)
    if len(hosts) == 1:
        return Rendezvous(node=position, port=runner.master_port or 0)
    address = runner.master_addr or next((environ[name] for name in ADDRESS_ENVS if environ.get(name)), hosts[nodes[0]])
    port = runner.master_port or _number(environ, PORT_ENVS) or DEFAULT_PORT
    return Rendezvous(len(hosts), position, address, port)


def find_interface(rendezvous: Rendezvous) -> dict[str, str]:
    """The network by which this host reaches the others, for gloo: left alone it takes what the host's name says.

    Empty where there is one host, or where it cannot be told.
    """
    if rendezvous.num_nodes == 1:
        return {}
    with suppress(OSError):
        family, kind, protocol, _, where = socket.getaddrinfo(rendezvous.address, rendezvous.port or 1,
                                                              type=socket.SOCK_DGRAM)[0]  # fmt: skip
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(where)  # sends nothing
            own = probe.getsockname()[0]
        for name, addresses in psutil.net_if_addrs().items():
            if own in {address.address for address in addresses}:
                return {GLOO_INTERFACE_ENV: name}
    return {}


def _number(environ: Mapping[str, str], names: Sequence[str]) -> int | None:
    for name in names:
        if value := environ.get(name):
            if value.isdecimal():
                return int(value)
            raise ConfigError(Fault(f"{value!r} is not a number", where=f"environment variable {name}"))
    return None


def is_this_host(host: str) -> bool:
    """Whether a name or an address is this machine's."""
    if host in ("localhost", LOOPBACK, "::1", socket.gethostname(), socket.getfqdn()):
        return True
    return any(host == address.address for addresses in psutil.net_if_addrs().values() for address in addresses)
