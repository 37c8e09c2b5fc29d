"""What is asked where services are planned: traffic, chips, and the forms of instances that may be run on them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Final

from flagvega.actions.call import Call
from flagvega.cluster.nodes import Cluster
from flagvega.cluster.source import where_of
from flagvega.config.blocks import PlanBlock
from flagvega.config.spec import Service, Spec
from flagvega.errors import ConfigError, Fault, NoPlanError
from flagvega.layout.serving import Instance
from flagvega.platform import find_chip
from flagvega.serve.advice import why_never
from flagvega.serve.curve import DEFAULT_STEP_TOKENS, PROFILE_FILE, Passing, Row, passing_of, read_serve_profile
from flagvega.serve.fleets import PARTS, Problem
from flagvega.serve.kinds import find_kind
from flagvega.serve.place import find_hosts, place
from flagvega.serve.roles import find_roles
from flagvega.serve.traffic import Traffic
from flagvega.serve.traffic_block import read_traffic

_KEYS: Final = ("profile", "objective", "time_s", "max_tp")
"""Of ``plan``, those that mean something where the task is to serve."""
_FREE: Final = ("max_num_seqs", "max_num_batched_tokens", "port", "host", "served_model_name", "tensor_parallel_size",
                "pipeline_parallel_size", "model")  # fmt: skip
"""Arguments that may differ from those that were measured: the plan sets them, or they change no time."""

_Seat = tuple[Service, Instance]


@dataclass(frozen=True)
class Question:
    """What is to be planned."""

    problem: Problem
    profile: Path
    time_s: float
    no_roles: str = ""
    """Why instances cannot share requests, in words."""


def pose(call: Call, spec: Spec) -> Question:
    """Traffic, chips and what is known of them; ConfigError with what is wrong, NoPlanError where nothing can do."""
    block = _read_block(spec)
    traffic, targets = read_traffic(spec)
    if not traffic.rate_per_s:
        raise ConfigError(Fault("a plan needs a rate of requests", where_of(spec, "traffic"), "write rate_per_s"))
    cluster = find_hosts(spec)
    path = Path(block.profile).expanduser() if block.profile else spec.exp_dir / PROFILE_FILE
    models = {str(service.arguments.get("model")) for service in spec.services}
    if len(models) > 1:
        raise ConfigError(Fault(f"a plan is for one model, not {', '.join(sorted(models))}", where_of(spec, "serve")))
    counts = Counter(chip for node in cluster.nodes for chip in node.devices)
    profile = read_serve_profile(path)
    measured = [row for row in profile.instances if row.model in models and row.chip in counts]
    if not measured:
        what = f"{path} holds no measurement of {models.pop()} on {', '.join(counts)}"
        raise ConfigError(Fault(what, where_of(spec, "plan.profile"), "measure with action=profile"))
    rows = _usable(call, spec, measured, cluster, traffic, block.max_tp)
    prices = _prices(spec, cluster, block)
    found = (find_kind(row, traffic, targets, prices[row.chip] * row.num_devices) for row in rows)
    kinds = tuple(kind for kind in found if kind)
    problem = Problem(
        kinds, _room(call, cluster, rows), traffic, targets, "cost" if block.objective == "cost" else "goodput"
    )
    problem, no_roles = _with_roles(call, spec, problem, rows, prices, passing_of(profile, measured[0].model))
    if not kinds and find_roles(problem, (), time.monotonic()) is None:
        reasons = "; ".join(why_never(rows, problem))
        what = f"no instance meets the targets for {targets.share:.0%} of requests at any rate: {reasons}"
        raise NoPlanError(Fault(what, where_of(spec, "traffic.targets"), "ask for less, or measure faster chips"))
    return Question(problem, path, block.time_s, no_roles)


def _with_roles(call: Call, spec: Spec, problem: Problem, rows: Sequence[Row], prices: Mapping[str, float],
                passing: Passing | None) -> tuple[Problem, str]:  # fmt: skip
    """The problem with readers and writers among its kinds; or as it was, and why there are none."""
    if passing is None:
        return problem, "what handing a prompt over takes was not measured (action=profile roles=true)"
    seats = [_seat(spec, row) for row in rows]
    told = [
        (frozenset((rows[i].name, rows[j].name)), _find_refusal(call, spec, seats[i], seats[j]))
        for i, j in combinations_with_replacement(range(len(rows)), 2)
    ]
    refused = {names: why for names, why in told if why}
    if len(refused) == len({names for names, _ in told}):
        return problem, next(iter(refused.values()))
    found = (
        find_kind(row, problem.traffic, problem.targets, prices[row.chip] * row.num_devices, role)
        for row in rows
        for role in PARTS
    )
    split = tuple(kind for kind in found if kind)
    return replace(problem, split=split, passing=passing, apart=frozenset(refused)), ""


def _seat(spec: Spec, row: Row) -> _Seat:
    """A form as a service, and an instance of it: to place one may take a look at the host's devices."""
    service = formed(base_of(spec, row), row, spec)
    return service, place(replace(spec, services=(service,)))[1].instances[0]


def _find_refusal(call: Call, spec: Spec, one: _Seat, other: _Seat) -> str:
    """Why one form cannot read for another, as the engine says; empty where it can."""
    seats = list(zip(PARTS, (one, other), strict=True))
    services = tuple(replace(service, name=role, role=role) for role, (service, _) in seats)
    instances = [replace(seat, id=i, service=role, role=role) for i, (role, (_, seat)) in enumerate(seats)]
    pair = replace(spec, services=services)
    faults = [*call.server.check(pair), *call.server.check_plan(pair, instances)]
    return faults[0].what if faults else ""


def _read_block(spec: Spec) -> PlanBlock:
    given = spec.blocks.get("plan", {})
    block = PlanBlock(**{name: given[name] for name in _KEYS if name in given})
    names = {name for name, value in given.items() if value != getattr(PlanBlock(), name)}
    faults = [
        Fault(f"'{name}' means nothing for services", where_of(spec, f"plan.{name}"), f"keys here: {', '.join(_KEYS)}")
        for name in sorted(names - set(_KEYS))
    ]
    if block.objective == "time":
        fix = "legal where the task is to serve: goodput, cost"
        faults.append(Fault("'time' is of training", where_of(spec, "plan.objective"), fix))
    if faults:
        raise ConfigError(faults)
    return block


def _room(call: Call, cluster: Cluster, rows: Sequence[Row]) -> dict[str, int]:
    """Devices of each chip that instances can fill: each stays within a host; what is left out is told."""
    room = Counter[str]()
    for node in cluster.nodes:
        for chip, number in Counter(node.devices).items():
            widest = max((row.num_devices for row in rows if row.chip == chip), default=1)
            idle = number % widest if len(cluster.nodes) > 1 else 0
            room[chip] += number - idle
            if idle:
                call.say(f"left out: {idle} x {chip} of {node.host}: instances of {widest} do not fill its {number}")
    return dict(room)


def _usable(call: Call, spec: Spec, measured: Sequence[Row], cluster: Cluster, traffic: Traffic,
            max_tp: int | None) -> list[Row]:  # fmt: skip
    """The measured forms that fit the hosts and the requests; what is left out is told."""
    needed = traffic.input_tokens.longest + traffic.output_tokens.longest
    counts = {chip: max(node.devices.count(chip) for node in cluster.nodes)
              for node in cluster.nodes for chip in node.devices}  # fmt: skip
    rows: list[Row] = []
    for row in measured:
        if row.max_tokens is not None and needed > row.max_tokens:
            call.say(f"left out: {row.name} holds {row.max_tokens} tokens of a request, and the longest has {needed}")
        elif row.num_devices > counts[row.chip] or (max_tp and row.tp > max_tp):
            call.say(f"left out: {row.name} needs {row.num_devices} of {counts[row.chip]} chips of a host")
        else:
            rows.append(row)
            _tell_changes(call, spec, row)
    for chip in counts.keys() - {row.chip for row in measured}:
        call.say(f"left out: {chip} is not in the profile; action=profile measures it")
    if not rows:
        what = "no measured form of an instance fits a host and the requests"
        raise NoPlanError(Fault(what, where_of(spec, "traffic"), f"the longest request has {needed} tokens"))
    return rows


def _tell_changes(call: Call, spec: Spec, row: Row) -> None:
    """Say which arguments were others when the form was measured."""
    given = {k: v for k, v in base_of(spec, row).arguments.items() if k not in _FREE}
    then = {name: value for name, value in row.arguments.items() if name not in _FREE}
    if others := sorted(name for name in given.keys() | then.keys() if given.get(name) != then.get(name)):
        call.say(f"warning: {row.name} was measured with other {', '.join(others)}")


def _prices(spec: Spec, cluster: Cluster, block: PlanBlock) -> dict[str, float]:
    """Price per hour of a device by chip; 0 where none is told."""
    prices = {chip: 0.0 for node in cluster.nodes for chip in node.devices}
    for entry in spec.blocks.get("cluster", {}).get("nodes", ()):
        prices[find_chip(entry["chip"]).name] = float(entry.get("price_per_hour") or 0.0)
    free = [chip for chip, price in prices.items() if not price]
    if block.objective == "cost" and free:
        fix = "write price_per_hour beside each chip under cluster.nodes"
        where = where_of(spec, "plan.objective")
        raise ConfigError([Fault(f"the cheapest plan needs prices, and {chip} has none", where, fix) for chip in free])
    return prices


# ---- forms as services ----


def base_of(spec: Spec, row: Row) -> Service:
    """The service of the YAML that a form comes from."""
    return next((service for service in spec.services if service.name == row.service), spec.services[0])


def formed(base: Service, row: Row, spec: Spec) -> Service:
    """A service in a form that was measured."""
    first = spec.services[0]
    arguments = {name: value for name, value in base.arguments.items() if name != "port"}
    arguments |= {
        "served_model_name": first.arguments.get("served_model_name") or [first.name],
        "max_num_batched_tokens": row.arguments.get("max_num_batched_tokens") or DEFAULT_STEP_TOKENS,
    }
    arguments |= {"tensor_parallel_size": row.tp} if row.tp > 1 else {}
    arguments |= {"pipeline_parallel_size": row.pp} if row.pp > 1 else {}
    return replace(base, arguments=arguments, num_replicas=1, chip=row.chip, role="both")
