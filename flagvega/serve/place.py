"""Where instances run: services in order, each instance on the first free devices of one chip."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from flagvega.cluster.chips import chip_name, misspelt_chips
from flagvega.cluster.nodes import Cluster, Node
from flagvega.cluster.source import find_cluster, where_of
from flagvega.config.spec import Service, Spec
from flagvega.errors import ConfigError, Fault
from flagvega.layout.request import LayoutRequest, MeshRequest
from flagvega.layout.serving import EVERYWHERE, LOOPBACK, Instance, ServePlan
from flagvega.platform import find_chip

FIRST_PORT = 8000
BATCH_PORT = 8400
"""An inference shall not stand in the way of a service on the same host."""


@dataclass(frozen=True)
class _Seat:
    """Devices for an instance."""

    service: Service
    replica: int
    node: int
    chip: str
    devices: tuple[int, ...]


def place(spec: Spec) -> tuple[Cluster, ServePlan]:
    """The hosts, and which of their devices each instance has.

    :raises ConfigError: when there are more instances than devices, or an instance cannot listen where it is told to.
    """
    cluster = find_hosts(spec)
    free = [_by_chip(node) for node in cluster.nodes]
    seats: dict[tuple[str, int], _Seat] = {}
    faults: list[Fault] = []
    for service in _in_turn(spec.services, len(cluster.nodes)):
        for replica in range(service.num_replicas):
            found = _take(free, service)
            if found is None:
                faults.append(_lacking(spec, service, replica, cluster))
                break
            seats[service.name, replica] = _Seat(service, replica, *found)
    if not faults:
        order = [seats[service.name, replica] for service in spec.services for replica in range(service.num_replicas)]
        faults = _check_addresses(spec, cluster, order)
    if faults:
        raise ConfigError(faults)
    return cluster, ServePlan(tuple(_instances(cluster, order, _ports(spec))))


def _in_turn(services: Sequence[Service], num_hosts: int) -> Sequence[Service]:
    """Who is seated first: of several hosts, what needs most of one, so that no host is filled with small ones."""
    return services if num_hosts == 1 else sorted(services, key=lambda service: -service.num_devices)


def _instances(cluster: Cluster, seats: Sequence[_Seat], ports: Iterator[int]) -> Iterator[Instance]:
    """In the order of the seats. Those beside the gateway are reached by it alone; it finds the others by network."""
    nodes = sorted({seat.node for seat in seats})
    placed = Counter[int]()
    for number, seat in enumerate(seats):
        name = cluster.nodes[seat.node].host
        given = seat.service.arguments.get("host")
        yield Instance(
            id=number,
            service=seat.service.name,
            replica=seat.replica,
            chip=seat.chip,
            node=seat.node,
            place=placed[seat.node],
            devices=seat.devices,
            tp=seat.service.tp,
            pp=seat.service.pp,
            host=str(given or (LOOPBACK if seat.node == nodes[0] else name)),
            port=next(ports),
            role=seat.service.role,
            address=name if len(nodes) > 1 else "",
        )
        placed[seat.node] += 1


def _check_addresses(spec: Spec, cluster: Cluster, seats: Sequence[_Seat]) -> list[Fault]:
    """An address is one host's."""
    first = min((seat.node for seat in seats), default=0)
    away = {seat.service.name: seat for seat in reversed(seats) if seat.node != first}
    return [
        Fault(f"'host' is {given}, and instance {seat.replica} of '{name}' is on {cluster.nodes[seat.node].host}",
              spec.where.get(f"{name}.host", f"serve: {name}"),
              "leave it out: each listens at the address of its host (0.0.0.0: at every one)")
        for name, seat in away.items()
        if (given := seat.service.arguments.get("host")) and given not in EVERYWHERE
    ]  # fmt: skip


def find_hosts(spec: Spec) -> Cluster:
    """The hosts that services may run on.

    :raises ConfigError: when there are several without addresses.
    """
    cluster = find_cluster(spec, _request(spec))
    if len(cluster.nodes) > 1 and not spec.blocks.get("cluster", {}).get("nodes") and not spec.runner.hostfile:
        what = "the other hosts of a service need addresses: it is there that their instances listen"
        where = where_of(spec, "experiment.runner.nnodes")
        raise ConfigError(Fault(what, where, "write cluster.nodes, or a hostfile"))
    return cluster


def find_host(spec: Spec) -> Cluster:
    """The host of what is done on one, as a cluster of one.

    :raises ConfigError: when there are several.
    """
    cluster = find_hosts(spec)
    if len(cluster.nodes) != 1:
        what = f"this is done on one host, and the cluster has {len(cluster.nodes)}"
        fix = "name one host of each kind in turn in cluster.nodes; action=plan and action=run take all of them"
        raise ConfigError(Fault(what, where_of(spec, "cluster"), fix))
    return cluster


def check_listening(host: str, port: int, key: str) -> list[Fault]:
    """Whether it can be listened there; ``key`` is where another port is written."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        fix = f"give another {key}, or end what listens there"
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            fix = "cluster.nodes and hostfiles name hosts by an address or a name that is theirs"
        return [Fault(f"cannot listen: {error.strerror}", f"{host}:{port}", fix)]
    return []


def check_reached(hosts: Collection[str], meeting: str) -> list[Fault]:
    """Whether what listens at ``hosts`` is reached from the first host, which is met at ``meeting``.

    On many machines their own name means an address that is only theirs.
    """
    if _is_loopback(meeting):
        return []  # all hosts are this machine
    return [
        Fault("this address is reached from this host alone", host, "name the host in the cluster by its address")
        for host in hosts
        if _is_loopback(host)
    ]


def _is_loopback(host: str) -> bool:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(entry[4][0]).is_loopback for entry in found)


def _request(spec: Spec) -> LayoutRequest:
    """What is asked of a machine whose devices cannot be counted: as many as the services need."""
    needed: dict[str | None, int] = {}
    faults = misspelt_chips(spec.blocks, lambda path: where_of(spec, path))
    for i, service in enumerate(spec.services):
        chip = chip_name(service.chip, where_of(spec, f"serve[{i}].chip"), faults) if service.chip else None
        needed[chip] = needed.get(chip, 0) + service.num_devices * service.num_replicas
    if faults:
        raise ConfigError(faults)
    meshes = tuple(MeshRequest(tp=number, chip=chip) for chip, number in needed.items())
    return LayoutRequest(meshes, 1, 1, 1)


def _by_chip(node: Node) -> dict[str, list[int]]:
    """Local indices of a node's devices; each chip numbers its own, as its tools do."""
    found: dict[str, list[int]] = {}
    for chip in node.devices:
        found.setdefault(chip, []).append(len(found.get(chip, ())))
    return found


def _take(free: Sequence[dict[str, list[int]]], service: Service) -> tuple[int, str, tuple[int, ...]] | None:
    """Node, chip and devices of the first host that has enough of one chip."""
    for node, chips in enumerate(free):
        for chip in [find_chip(service.chip).name] if service.chip else list(chips):
            if len(chips.get(chip, ())) >= service.num_devices:
                taken, chips[chip] = chips[chip][: service.num_devices], chips[chip][service.num_devices :]
                return node, chip, tuple(taken)
    return None


def _lacking(spec: Spec, service: Service, replica: int, cluster: Cluster) -> Fault:
    kind = f" {service.chip}" if service.chip else ""
    have = "; ".join(_contents(node, len(cluster.nodes) > 1) for node in cluster.nodes)
    what = f"no {service.num_devices}{kind} free for instance {replica} of '{service.name}': {have}"
    stays = "an instance stays within a host: " if len(cluster.nodes) > 1 and service.num_devices > 1 else ""
    fix = f"{stays}serve fewer instances, or cut each over fewer devices"
    return Fault(what, spec.where.get("serve", "serve"), fix)


def _contents(node: Node, is_named: bool) -> str:
    chips = ", ".join(f"{node.devices.count(chip)} x {chip}" for chip in dict.fromkeys(node.devices))
    return f"{node.host if is_named else 'the host'} has {chips}"


def _ports(spec: Spec) -> Iterator[int]:
    """A port for each instance in turn: the service's own and those behind it, else from 8000 on; not the gateway's."""
    taken: set[int] = {port for port in [spec.blocks.get("gateway", {}).get("port")] if port}
    for service in spec.services:
        first = service.arguments.get("port")
        for replica in range(service.num_replicas):
            port = first + replica if first else BATCH_PORT if spec.generate else FIRST_PORT
            while port in taken:
                port += 1
            taken.add(port)
            yield port
