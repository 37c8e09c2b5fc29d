"""What ``plan`` in the YAML fixes beforehand: hosts, order, the most tp, meshes that stay; and what cannot be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flagvega.cluster.nodes import Cluster, Node
from flagvega.cluster.source import where_of
from flagvega.config.nearest import suggest
from flagvega.config.spec import Spec
from flagvega.errors import ConfigError, Fault
from flagvega.layout.codec import plan_from_json
from flagvega.model.workload import Choices, KeptMesh, Workload
from flagvega.plan.costs import Degrees, Side
from flagvega.plan.machine import Machine
from flagvega.platform import find_chip
from flagvega.records import read_json

Reason = Callable[[Side], str | None]
"""Why degrees are not legal, in the engine's words; None where they are."""


def usable_part(spec: Spec, cluster: Cluster) -> Cluster:
    """The cluster with the devices of ``plan.nodes`` only; hosts keep their numbers."""
    wanted = spec.blocks.get("plan", {}).get("nodes", ())
    hosts = [node.host for node in cluster.nodes]
    faults = []
    for i, name in enumerate(wanted):
        if name not in hosts:
            fix = suggest(name, hosts) or f"hosts: {', '.join(hosts[:12])}{', ...' if len(hosts) > 12 else ''}"
            faults.append(Fault(f"there is no host '{name}' in the cluster", where_of(spec, f"plan.nodes[{i}]"), fix))
    if faults:
        raise ConfigError(faults)
    if not wanted:
        return cluster
    return Cluster(tuple(Node(node.host, node.devices if node.host in wanted else ()) for node in cluster.nodes))


def read_pins(spec: Spec, choices: Choices, machine: Machine, reason: Reason) -> Choices:
    """The choices with what the ``plan`` block says; ConfigError with everything in it that cannot be."""
    block = spec.blocks.get("plan", {})
    faults: list[Fault] = []
    order = _read_order(spec, block.get("order", ()), machine, faults)
    kept: dict[str, KeptMesh] = {}
    pinned = replace(choices, max_tp=block.get("max_tp"), order=order)
    for i, entry in enumerate(block.get("keep", ())):
        where = where_of(spec, f"plan.keep[{i}]")
        try:
            meshes = _from_plan(spec, entry, i) if entry.get("plan") else [_by_hand(entry, where)]
        except ConfigError as error:
            faults += error.faults
            continue
        for mesh in meshes:
            if mesh.chip in kept:
                faults.append(Fault(f"{mesh.chip} is kept twice", where, "keep one mesh of each kind of chip"))
            kept[mesh.chip] = mesh
            faults += [Fault(what, where, fix) for what, fix in _why_not(mesh, pinned, machine, reason)]
    faults += [*_not_of_training(spec), *_without_price(spec, machine)]
    if faults:
        raise ConfigError(faults)
    return replace(pinned, kept=tuple(kept.values()))


def check_choices(choices: Choices, machine: Machine, work: Workload, where: Mapping[str, str]) -> list[Fault]:
    """What no layout can satisfy, whatever is chosen for the rest."""
    faults = []
    devices = sum(group.count for group in machine.groups)
    layers, stages = work.shape.layers, choices.num_stages
    at = where.get("pipeline_model_parallel_size", "pipeline_model_parallel_size")
    if stages is not None and stages > layers + 2:
        what = f"{stages} stages are more than {layers} layers, the embedding and the head can fill"
        faults.append(Fault(what, at, f"at most {layers + 2}; or leave it out"))
    elif stages is not None and stages > devices:
        faults.append(Fault(f"{stages} stages need as many devices; there are {devices}", at, f"at most {devices}"))
    for mesh in choices.kept:
        if work.batch_unit % mesh.dp:
            what = f"dp {mesh.dp} of the kept mesh of {mesh.chip} does not divide the global batch of {work.batch_unit}"
            fix = f"write dp {_divisors_near(work.batch_unit, mesh.dp)}, or another global_batch_size"
            faults.append(Fault(what, where.get("plan.keep", "plan.keep"), fix))
    if choices.tp and min(choices.tp) > max(group.node_size for group in machine.groups):
        largest = max(group.node_size for group in machine.groups)
        what = f"tensor parallelism of {min(choices.tp)} stays inside a host, and none has more than {largest} devices"
        at = where.get("tensor_model_parallel_size", "tensor_model_parallel_size")
        faults.append(Fault(what, at, f"at most {largest}; or leave it out"))
    return faults


def _read_order(spec: Spec, names: tuple[str, ...], machine: Machine, faults: list[Fault]) -> tuple[str, ...] | None:
    chips = [group.chip for group in machine.groups]
    order: list[str] = []
    num_faults = len(faults)
    for i, name in enumerate(names):
        where = where_of(spec, f"plan.order[{i}]")
        chip = _chip(name, where, chips, faults)
        if chip in order:
            faults.append(
                Fault(f"{chip} comes twice in the order", where, "all stages of a kind of chip are neighbours")
            )
        order += [chip] if chip else []
    if names and len(faults) == num_faults and (absent := [chip for chip in chips if chip not in order]):
        fix = f"add it where it may come, or leave its hosts out with plan.nodes: [{', '.join([*order, absent[0]])}]"
        faults.append(Fault(f"the order does not have {absent[0]}", where_of(spec, "plan.order"), fix))
    return tuple(order) or None


def _chip(name: str, where: str, chips: list[str], faults: list[Fault]) -> str | None:
    """The chip that a name means, when it is in the machine."""
    try:
        chip = find_chip(name).name
    except ConfigError as error:
        faults += [replace(fault, where=where) for fault in error.faults]
        return None
    if chip not in chips:
        faults.append(Fault(f"there is no {chip} to be used", where, f"there is: {', '.join(chips)}"))
        return None
    return chip


def _by_hand(entry: Mapping[str, Any], where: str) -> KeptMesh:
    if not entry.get("chip"):
        fix = "write chip and degrees: {chip: A800, tp: 8, dp: 2, pp: 2}; or a plan: {plan: outputs/x/plan.json}"
        raise ConfigError(Fault("a mesh to keep has neither a chip nor a plan", where, fix))
    try:
        chip = find_chip(entry["chip"]).name
    except ConfigError as error:
        raise ConfigError([replace(fault, where=where) for fault in error.faults]) from error
    etp = entry.get("etp") or entry["tp"]
    return KeptMesh(chip, entry["tp"], entry["cp"], entry["ep"], etp, entry["dp"], entry["pp"])


def _from_plan(spec: Spec, entry: Mapping[str, Any], i: int) -> list[KeptMesh]:
    """The meshes of a plan's file, or that of one chip."""
    where = where_of(spec, f"plan.keep[{i}].plan")
    if any(entry[name] > 1 for name in ("tp", "cp", "ep", "dp", "pp")) or entry.get("etp"):
        raise ConfigError(Fault("degrees beside a plan say it twice", where, "keep either the plan or the degrees"))
    try:
        plan = plan_from_json(read_json(Path(entry["plan"])))
    except (OSError, ValueError) as error:
        raise ConfigError(Fault(f"the plan to keep meshes of cannot be read: {error}", where)) from error
    chips = [mesh.chip for mesh in plan.meshes]
    faults: list[Fault] = []
    if entry.get("chip"):
        wanted = _chip(entry["chip"], where_of(spec, f"plan.keep[{i}].chip"), chips, faults)
        chips = [wanted] if wanted else []
    several = [chip for chip, number in Counter(mesh.chip for mesh in plan.meshes).items() if number > 1]
    for chip in several:
        if chip in chips:
            fix = "keep one by its degrees: {chip: ..., tp: ..., dp: ..., pp: ...}"
            faults.append(Fault(f"the plan has several meshes of {chip}, and one can be kept", where, fix))
    if faults:
        raise ConfigError(faults)
    return [
        KeptMesh(mesh.chip, mesh.tp, mesh.cp, mesh.ep, mesh.etp, mesh.dp, mesh.num_stages)
        for mesh in plan.meshes
        if mesh.chip in chips
    ]


def _why_not(mesh: KeptMesh, choices: Choices, machine: Machine, reason: Reason) -> Iterator[tuple[str, str]]:
    """(what, fix) for all that keeps a mesh from being as it is asked for."""
    chips = [group.chip for group in machine.groups]
    if mesh.chip not in chips:
        yield f"there is no {mesh.chip} to be used", f"there is: {', '.join(chips)}"
        return
    group = machine.groups[chips.index(mesh.chip)]
    size = mesh.tp * mesh.cp * mesh.dp
    name = f"the kept mesh of {mesh.chip}"
    if size * mesh.pp > group.count:
        asked = f"{mesh.tp} (tp) x {mesh.cp} (cp) x {mesh.dp} (dp) x {mesh.pp} (pp) = {size * mesh.pp} devices"
        yield f"{name} needs {asked}; there are {group.count}", "lower a degree"
    if mesh.tp > group.node_size:
        yield f"{name} has tp {mesh.tp}, which stays inside a host of {group.node_size}", f"at most {group.node_size}"
    if choices.max_tp is not None and mesh.tp > choices.max_tp:
        yield f"{name} has tp {mesh.tp}, and plan.max_tp is {choices.max_tp}", "change one of the two"
    for degree, pinned in (("tp", choices.tp), ("cp", choices.cp), ("ep", choices.ep), ("etp", choices.etp)):
        if pinned and getattr(mesh, degree) not in pinned:
            what = f"{name} has {degree} {getattr(mesh, degree)}, but {degree} {pinned[0]} is given under train"
            yield what, "change one of the two"
    if choices.num_stages is not None and mesh.pp > choices.num_stages:
        yield f"{name} has {mesh.pp} stages, but {choices.num_stages} are given under train", "change one of the two"
    if size % (mesh.ep * mesh.etp):
        yield f"ep {mesh.ep} x etp {mesh.etp} of {name} does not divide its {size} devices", "lower ep or etp"
        return
    index = chips.index(mesh.chip)
    ways = [Degrees(mesh.tp, mesh.cp, mesh.ep, mesh.etp, mesh.dp, sp and mesh.tp > 1) for sp in choices.sp]
    reasons = [reason(Side(index, way)) for way in ways]
    if all(reasons):
        yield f"{name} is not legal: {reasons[0]}", "change its degrees"


def _not_of_training(spec: Spec) -> list[Fault]:
    """An objective that only services have."""
    if spec.blocks.get("plan", {}).get("objective") != "goodput":
        return []
    fix = "legal where the task is to train: time, cost"
    return [Fault("goodput is of services", where_of(spec, "plan.objective"), fix)]


def _without_price(spec: Spec, machine: Machine) -> list[Fault]:
    """Chips whose price the objective asks for and nobody has told."""
    if spec.blocks.get("plan", {}).get("objective", "time") != "cost":
        return []
    free = [group.chip for group in machine.groups if group.price_per_hour == 0]
    fix = "write price_per_hour beside each chip under cluster.nodes"
    where = where_of(spec, "plan.objective")
    return [Fault(f"the cheapest plan needs prices, and {chip} has none", where, fix) for chip in free]


def _divisors_near(total: int, wanted: int) -> str:
    """``16 or 32``: the divisors below and above."""
    divisors = [size for size in range(1, total + 1) if total % size == 0]
    below = [size for size in divisors if size < wanted][-1:]
    above = [size for size in divisors if size > wanted][:1]
    return " or ".join(map(str, below + above))
