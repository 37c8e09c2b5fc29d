"""``action=plan`` where the task is to serve: which instances for a traffic, why, and a YAML that runs them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any, Final

import yaml

from flagvega.actions.call import Answer, Call
from flagvega.actions.serve_profile import checked
from flagvega.cluster.nodes import Cluster
from flagvega.cluster.source import where_of
from flagvega.config.blocks import PlanBlock
from flagvega.config.spec import Service, Spec
from flagvega.errors import ConfigError, Fault, NoPlanError
from flagvega.layout.serving import serve_plan_to_json
from flagvega.platform import find_chip
from flagvega.records import write_json, write_text, writing
from flagvega.serve.advice import (
    Gain,
    find_changes,
    find_gains,
    find_limit,
    misses,
    rate_of,
    tell_roles,
    why_never,
)
from flagvega.serve.choose import choose
from flagvega.serve.curve import DEFAULT_STEP_TOKENS, PROFILE_FILE, Passing, Row, passing_of, read_serve_profile
from flagvega.serve.fleets import PARTS, Outlook, Problem, holds
from flagvega.serve.kinds import Kind, find_kind
from flagvega.serve.place import find_hosts, place
from flagvega.serve.tables import fleet_table, gains_table
from flagvega.serve.traffic import Traffic, outcome_facts
from flagvega.serve.traffic_block import read_traffic

PLAN_FILE: Final = "plan.json"
YAML_FILE: Final = "planned.yaml"
"""In the run's folder: what ``action=run`` takes."""
_KEYS: Final = ("profile", "objective", "time_s", "max_tp")
"""Of ``plan``, those that mean something where the task is to serve."""
_FREE: Final = ("max_num_seqs", "max_num_batched_tokens", "port", "host", "served_model_name", "tensor_parallel_size",
                "pipeline_parallel_size", "model")  # fmt: skip
"""Arguments that may differ from those that were measured: the plan sets them, or they change no time."""


@dataclass(frozen=True)
class Question:
    """What is to be planned."""

    problem: Problem
    rows: tuple[Row, ...]
    """Measured forms on the chips of the host."""
    profile: Path
    time_s: float
    no_roles: str = ""
    """Why instances cannot share requests, in words."""


def act(call: Call) -> Answer:
    """Plan, and write ``<exp_dir>/plan.json`` and ``<exp_dir>/planned.yaml``."""
    spec = checked(call)
    question = pose(call, spec)
    problem = question.problem
    outlook = choose(problem, question.time_s)
    changes = [] if holds(outlook, problem) else find_changes(problem)
    if problem.objective == "cost" and changes:
        raise NoPlanError(_infeasible(outlook, problem, changes))
    rate = rate_of(outlook.fleet, problem)
    gains = find_gains(outlook.fleet, problem, rate)
    planned = _services(spec, outlook)
    document = _document(spec, outlook, question, rate, gains, changes, planned)
    yaml_file = _write(spec, document, planned, question, outlook.patience_s)
    facts = _facts(outlook, question, rate, changes)
    run = f"run it: python run.py --config-path {yaml_file.parent} --config-name {yaml_file.stem} action=run"
    tables = (fleet_table(outlook, problem), *([gains_table(gains, rate)] if gains else []))
    return Answer(document, (*tables, *facts, f"written to {spec.exp_dir / PLAN_FILE} and {yaml_file}", run))


# ---- the question ----


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
    if not kinds and {kind.role for kind in problem.split} < set(PARTS):
        reasons = "; ".join(why_never(rows, problem))
        what = f"no instance meets the targets for {targets.share:.0%} of requests at any rate: {reasons}"
        raise NoPlanError(Fault(what, where_of(spec, "traffic.targets"), "ask for less, or measure faster chips"))
    return Question(problem, tuple(rows), path, block.time_s, no_roles)


def _with_roles(call: Call, spec: Spec, problem: Problem, rows: Sequence[Row], prices: Mapping[str, float],
                passing: Passing | None) -> tuple[Problem, str]:  # fmt: skip
    """The problem with readers and writers among its kinds; or as it was, and why there are none."""
    if passing is None:
        return problem, "what handing a prompt over takes was not measured (action=profile roles=true)"
    refused = {
        frozenset((one.name, other.name)): why
        for one, other in combinations_with_replacement(rows, 2)
        if (why := _find_refusal(call, spec, one, other))
    }
    if len(refused) == len(rows) * (len(rows) + 1) / 2:
        return problem, next(iter(refused.values()))
    found = (
        find_kind(row, problem.traffic, problem.targets, prices[row.chip] * row.num_devices, role)
        for row in rows
        for role in PARTS
    )
    split = tuple(kind for kind in found if kind)
    return replace(problem, split=split, passing=passing, apart=frozenset(refused)), ""


def _find_refusal(call: Call, spec: Spec, one: Row, other: Row) -> str:
    """Why one form cannot read for another, as the engine says; empty where it can."""
    services = tuple(
        replace(_formed(_base(spec, row), row, spec), name=role, role=role)
        for role, row in zip(PARTS, (one, other), strict=True)
    )
    instances = [place(replace(spec, services=(service,)))[1].instances[0] for service in services]
    instances = [replace(instance, id=i) for i, instance in enumerate(instances)]
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
    given = {k: v for k, v in _base(spec, row).arguments.items() if k not in _FREE}
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


# ---- the answer ----


def _infeasible(outlook: Outlook, problem: Problem, changes: Sequence[str]) -> Fault:
    targets, share, answers = problem.targets, outlook.outcome.good_share, outlook.forecast.answers
    what = (
        f"not even all chips hold the targets for {targets.share:.0%} of {problem.rate_per_s:g} requests/s: "
        f"{share:.1%} would meet them ({_words(misses(answers, targets), len(answers))})"
    )
    return Fault(what, "traffic", f"one of these would do: {'; '.join(changes)}")


def _words(found: Counter[str], total: int) -> str:
    return ", ".join(f"{what} {number / total:.1%}" for what, number in found.most_common())


def _facts(outlook: Outlook, question: Question, rate: float, changes: Sequence[str]) -> Iterator[str]:
    problem = question.problem
    outcome, targets = outlook.outcome, problem.targets
    price = f", price {outlook.price_per_hour:.4g} an hour" if outlook.price_per_hour else ""
    yield (
        f"expected: {outcome.goodput_per_s:.3g} of {problem.rate_per_s:g} requests/s meet the targets "
        f"({outcome.good_share:.1%}, wanted {targets.share:.0%}){price}"
    )
    if found := misses(outlook.forecast.answers, targets):
        yield f"the others: {_words(found, len(outlook.forecast.answers))}"
    yield f"holds the targets up to {rate:.3g} requests/s" if rate else "does not hold the targets at any rate"
    yield f"limited by {find_limit(outlook)}"
    yield tell_roles(outlook, problem) or f"no roles: {question.no_roles}"
    if outlook.has_roles:
        passing = problem.passing
        yield f"handing a prompt over was measured: {passing.base_s:.3g} s and {passing.token_s:.3g} s for each token"
    used = Counter[str]()
    for kind, number in outlook.fleet:
        used[kind.row.chip] += kind.row.num_devices * number
    for chip, count in problem.counts.items():
        if left := count - used[chip]:
            yield f"left idle: {left} x {chip}"
    if changes:
        yield f"the targets would hold with one of: {'; '.join(changes)}"


def _base(spec: Spec, row: Row) -> Service:
    """The service of the YAML that a form comes from."""
    return next((service for service in spec.services if service.name == row.service), spec.services[0])


def _services(spec: Spec, outlook: Outlook) -> tuple[Service, ...]:
    """A service for each kind of instance; to clients they are one model."""
    return tuple(_service(_base(spec, kind.row), kind, number, spec) for kind, number in outlook.fleet)


def _formed(base: Service, row: Row, spec: Spec) -> Service:
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


def _service(base: Service, kind: Kind, number: int, spec: Spec) -> Service:
    formed = _formed(base, kind.row, spec)
    name = "-".join([kind.row.service, *kind.name.split()])
    arguments = {**formed.arguments, "max_num_seqs": kind.slots}
    return replace(formed, name=name, arguments=arguments, num_replicas=number, role=kind.role)


def _document(spec: Spec, outlook: Outlook, question: Question, rate: float, gains: Sequence[Gain],
              changes: Sequence[str], planned: Sequence[Service]) -> dict[str, Any]:  # fmt: skip
    _, plan = place(replace(spec, services=tuple(planned)))
    outcome, problem = outlook.outcome, question.problem
    return {
        **serve_plan_to_json(plan),
        "predictions": {
            **{k: v for k, v in outcome_facts(outcome).items() if k not in ("late_s", "host_busy")},
            "holds": holds(outlook, problem),
            "holds_up_to_per_s": rate,
            "price_per_hour": outlook.price_per_hour,
            "first_token_limit_s": outlook.patience_s if problem.targets.first_token_s else None,
            "limited_by": find_limit(outlook),
            "misses": dict(misses(outlook.forecast.answers, problem.targets)),
            "instances": [
                {"form": kind.row.name, "role": kind.role, "slots": kind.slots, "num_requests": share.num_requests,
                 "sequences": share.sequences, "reading": share.reading}
                for kind, share in zip(outlook.members, outlook.forecast.shares, strict=True)
            ],
            "one_more": {gain.chip: gain.rate_per_s for gain in gains},
            "changes": list(changes),
            "roles": tell_roles(outlook, problem) or question.no_roles,
        },
        "traffic": {"rate_per_s": problem.rate_per_s, "targets": vars(problem.targets)},
        "objective": problem.objective,
    }  # fmt: skip


def _write(spec: Spec, document: Mapping[str, Any], planned: Sequence[Service], question: Question,
           patience_s: float) -> Path:  # fmt: skip
    composed = {name: value for name, value in spec.composed.items() if name not in ("action", "serve", "plan")}
    composed["serve"] = [_entry(service) for service in planned]
    composed["plan"] = {"profile": str(question.profile)}
    if question.problem.targets.first_token_s:
        gateway = dict(composed.get("gateway") or {})
        composed["gateway"] = {**gateway, "waiting": {**(gateway.get("waiting") or {}), "first_token_s": patience_s}}
    else:
        composed.setdefault("gateway", {})
    path = spec.exp_dir / YAML_FILE
    with writing(path):
        spec.exp_dir.mkdir(parents=True, exist_ok=True)
        write_json(spec.exp_dir / PLAN_FILE, document)
        write_text(path, _HEAD + yaml.safe_dump(composed, sort_keys=False, allow_unicode=True))
    return path


_HEAD: Final = "# Written by action=plan; action=run takes it.\n"


def _entry(service: Service) -> dict[str, Any]:
    return {
        "serve_id": service.name,
        "chip": service.chip,
        **({"role": service.role} if service.role != "both" else {}),
        "engine": service.engine,
        "engine_args": dict(service.arguments),
        "resources": {"num_replicas": service.num_replicas},
    }
