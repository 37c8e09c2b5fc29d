"""Where the cluster comes from: the ``cluster`` block, a hostfile, or this machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flagvega.cluster.chips import chip_name
from flagvega.cluster.hostfile import HostLine, read_hostfile
from flagvega.cluster.nodes import Cluster, Node
from flagvega.config.report import COMMAND_LINE
from flagvega.config.spec import Spec
from flagvega.errors import ConfigError, Fault
from flagvega.layout.request import LayoutRequest, MeshRequest
from flagvega.platform import HOST_PRECEDENCE, detect_devices, platforms

LOCALHOST = "localhost"


def find_cluster(spec: Spec, request: LayoutRequest) -> Cluster:
    """The hosts and devices of a run; ConfigError when they cannot be read.

    Without ``cluster`` block and hostfile it is this machine, once for every node of ``runner.nnodes``. Chips that
    the request names and that are not found here are taken to be where the run will be: preflight looks again.
    """
    block = spec.blocks.get("cluster", {})
    if block.get("nodes"):
        return _from_block(block["nodes"], spec)
    if spec.runner.hostfile:
        return _from_hostfile(_find_file(spec, spec.runner.hostfile), spec, request)
    return _this_machine(spec, request)


def _find_file(spec: Spec, name: str) -> Path:
    """A file that the YAML names: from where we are, else beside the YAML; ConfigError when it is nowhere."""
    path = Path(name).expanduser()
    beside = spec.folder / path
    found = next((each for each in (path, beside) if each.is_file()), None)
    if found is None:
        fix = f"looked for {' and '.join(dict.fromkeys([str(path), str(beside)]))}"
        raise ConfigError(Fault(f"there is no hostfile {name}", where_of(spec, "experiment.runner.hostfile"), fix))
    return found


def _from_block(entries: Sequence[Mapping[str, Any]], spec: Spec) -> Cluster:
    nodes: dict[str, list[str]] = {}
    faults: list[Fault] = []
    for i, entry in enumerate(entries):
        chips = [chip_name(entry["chip"], where_of(spec, f"cluster.nodes[{i}].chip"), faults)]
        chips *= entry.get("devices", 1)
        for host in _hosts(entry, where_of(spec, f"cluster.nodes[{i}].hosts"), faults):
            nodes.setdefault(host, []).extend(chips)
    if faults:
        raise ConfigError(faults)
    return Cluster(tuple(Node(host, tuple(chips)) for host, chips in nodes.items()))


def _hosts(entry: Mapping[str, Any], where: str, faults: list[Fault]) -> Sequence[str]:
    """The hosts of an entry."""
    host, count, hosts = entry.get("host", LOCALHOST), entry.get("count", 1), entry.get("hosts", ())
    if hosts and (host != LOCALHOST or count > 1):
        faults.append(Fault("'hosts' names each host, so 'host' and 'count' say it twice", where, "keep 'hosts' alone"))
    if twice := [name for name, number in Counter(hosts).items() if number > 1]:
        faults.append(Fault(f"host {twice[0]} is named twice", where, "name each host once"))
    return hosts or ([host] if count == 1 else [f"{host}-{i}" for i in range(count)])


def _from_hostfile(path: Path, spec: Spec, request: LayoutRequest) -> Cluster:
    lines = read_hostfile(path)
    if _is_given(spec, "nnodes"):
        lines = lines[: spec.runner.nnodes]
    faults: list[Fault] = []
    nodes = [_node(line, spec, request, faults) for line in lines]
    if faults:
        raise ConfigError(faults)
    return Cluster(tuple(nodes))


def _node(line: HostLine, spec: Spec, request: LayoutRequest, faults: list[Fault]) -> Node:
    named = [mesh.chip for mesh in request.meshes if mesh.chip]
    if line.type is not None:
        chip = chip_name(line.type, line.where, faults)
    elif len(set(named)) > 1:
        faults.append(
            Fault(f"host {line.host} has no type, but the meshes name several chips", line.where, "add type=")
        )
        chip = named[0]
    else:
        chip = named[0] if named else detect_devices()[0].chip
    slots = line.slots or spec.runner.nproc_per_node or 1
    if _is_given(spec, "nproc_per_node") and spec.runner.nproc_per_node:
        slots = min(slots, spec.runner.nproc_per_node)
    return Node(line.host, (chip,) * slots)


def _this_machine(spec: Spec, request: LayoutRequest) -> Cluster:
    """This host once for every node; those after the first are only known to be like it."""
    num_nodes = spec.runner.nnodes
    chips = _chips_here(spec, request)
    per_node = spec.runner.nproc_per_node or -(-len(chips) // num_nodes)
    hosts = [spec.runner.master_addr or LOCALHOST, *(f"node-{i}" for i in range(1, num_nodes))]
    shares = [chips[i * per_node : (i + 1) * per_node] for i in range(num_nodes)]
    return Cluster(tuple(Node(host, tuple(share)) for host, share in zip(hosts, shares, strict=True) if share))


def _chips_here(spec: Spec, request: LayoutRequest) -> list[str]:
    """A chip for every device of all nodes: what is found, or what the request needs of chips that are not."""
    num_nodes = spec.runner.nnodes
    found = detect_devices()
    countable = Counter(device.chip for device in found if platforms.get(device.vendor).precedence < HOST_PRECEDENCE)
    if all(mesh.chip is None for mesh in request.meshes):
        if countable:
            return [chip for chip, number in countable.items() for _ in range(number)] * num_nodes
        default = num_nodes * (spec.runner.nproc_per_node or 1)
        return [found[0].chip] * sum(_needed(mesh, default) for mesh in request.meshes)
    chips: list[str] = []
    for chip in dict.fromkeys(mesh.chip or found[0].chip for mesh in request.meshes):
        needed = sum(_needed(mesh, 1) for mesh in request.meshes if (mesh.chip or found[0].chip) == chip)
        chips += [chip] * min(countable[chip] * num_nodes or needed, needed)
    return chips


def _needed(mesh: MeshRequest, at_hand: int) -> int:
    """Devices of a mesh; one that fills what is at hand takes at least one replica."""
    size = mesh.tp * mesh.cp * mesh.pp
    return max(at_hand, size) if mesh.dp is None else size * mesh.dp


def where_of(spec: Spec, path: str) -> str:
    """The nearest place known of a key path: that of the entry, or of a block it is in."""
    near = path
    while near not in spec.where and ("." in near or "[" in near):
        near = near[: max(near.rfind("."), near.rfind("["))]
    place = spec.where.get(near)
    if place is None:
        return path
    return place if place.startswith(COMMAND_LINE) else place + path.removeprefix(near)


def _is_given(spec: Spec, key: str) -> bool:
    return f"experiment.runner.{key}" in spec.where
