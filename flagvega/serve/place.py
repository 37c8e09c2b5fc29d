"""Where instances run: services in order, each instance on the first free devices of one chip."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from flagvega.cluster.nodes import Cluster, Node
from flagvega.cluster.source import chip_name, find_cluster, where_of
from flagvega.config.spec import Service, Spec
from flagvega.errors import ConfigError, Fault
from flagvega.layout.request import LayoutRequest, MeshRequest
from flagvega.layout.serving import Instance, ServePlan
from flagvega.platform import find_chip

LOOPBACK = "127.0.0.1"
FIRST_PORT = 8000
BATCH_PORT = 8400
"""An inference shall not stand in the way of a service on the same host."""


def place(spec: Spec) -> tuple[Cluster, ServePlan]:
    """The host and which of its devices each instance has.

    :raises ConfigError: when there are more instances than devices, or hosts.
    """
    cluster = find_host(spec)
    free = _by_chip(cluster.nodes[0])
    instances: list[Instance] = []
    faults: list[Fault] = []
    ports = _ports(spec)
    for service in spec.services:
        for replica in range(service.num_replicas):
            found = _take(free, service)
            if found is None:
                faults.append(_lacking(spec, service, replica, cluster.nodes[0]))
                break
            chip, devices = found
            host = str(service.arguments.get("host") or LOOPBACK)
            where = next(ports)
            instances.append(
                Instance(
                    len(instances),
                    service.name,
                    replica,
                    chip,
                    0,
                    devices,
                    service.tp,
                    service.pp,
                    host,
                    where,
                    service.role,
                )
            )
    if faults:
        raise ConfigError(faults)
    return cluster, ServePlan(tuple(instances))


def find_host(spec: Spec) -> Cluster:
    """The host that services run on, as a cluster of one.

    :raises ConfigError: when there are several.
    """
    cluster = find_cluster(spec, _request(spec))
    if len(cluster.nodes) != 1:
        what = f"services run on one host, and the cluster has {len(cluster.nodes)}"
        raise ConfigError(Fault(what, "cluster", "start each host's services there"))
    return cluster


def check_port(host: str, port: int, key: str) -> list[Fault]:
    """Whether it can be listened there; ``key`` is where another port is written."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        fix = f"give another {key}, or end what listens there"
        return [Fault(f"cannot listen: {error.strerror}", f"{host}:{port}", fix)]
    return []


def _request(spec: Spec) -> LayoutRequest:
    """What is asked of a machine whose devices cannot be counted: as many as the services need."""
    needed: dict[str | None, int] = {}
    faults: list[Fault] = []
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


def _take(free: dict[str, list[int]], service: Service) -> tuple[str, tuple[int, ...]] | None:
    wanted = [find_chip(service.chip).name] if service.chip else list(free)
    for chip in wanted:
        if len(free.get(chip, ())) >= service.num_devices:
            taken, free[chip] = free[chip][: service.num_devices], free[chip][service.num_devices :]
            return chip, tuple(taken)
    return None


def _lacking(spec: Spec, service: Service, replica: int, node: Node) -> Fault:
    chips = ", ".join(f"{node.devices.count(chip)} x {chip}" for chip in dict.fromkeys(node.devices))
    kind = f" {service.chip}" if service.chip else ""
    what = f"no {service.num_devices}{kind} free for instance {replica} of '{service.name}': the host has {chips}"
    return Fault(what, spec.where.get("serve", "serve"), "serve fewer instances, or cut each over fewer devices")


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
