"""``action=plan`` where the task is to serve: which instances for a traffic, why, and a YAML that runs them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import yaml

from flagvega.actions.call import Answer, Call
from flagvega.actions.serve_profile import checked
from flagvega.actions.serve_question import Question, base_of, formed, pose
from flagvega.config.spec import Service, Spec
from flagvega.errors import Fault, NoPlanError
from flagvega.layout.serving import serve_plan_to_json
from flagvega.records import write_json, write_text, writing
from flagvega.serve.advice import Gain, find_changes, find_gains, find_limit, misses, rate_of, tell_roles
from flagvega.serve.choose import choose
from flagvega.serve.fleets import Outlook, Problem, devices_of, holds
from flagvega.serve.kinds import Kind
from flagvega.serve.place import place
from flagvega.serve.tables import fleet_table, gains_table
from flagvega.serve.traffic import outcome_facts

PLAN_FILE: Final = "plan.json"
YAML_FILE: Final = "planned.yaml"
"""In the run's folder: what ``action=run`` takes."""


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
    used = devices_of(outlook.fleet)
    for chip, count in problem.counts.items():
        if left := count - used[chip]:
            yield f"left idle: {left} x {chip}"
    if changes:
        yield f"the targets would hold with one of: {'; '.join(changes)}"


def _services(spec: Spec, outlook: Outlook) -> tuple[Service, ...]:
    """A service for each kind of instance; to clients they are one model."""
    return tuple(_service(base_of(spec, kind.row), kind, number, spec) for kind, number in outlook.fleet)


def _service(base: Service, kind: Kind, number: int, spec: Spec) -> Service:
    form = formed(base, kind.row, spec)
    name = "-".join([kind.row.service, *kind.name.split()])
    arguments = {**form.arguments, "max_num_seqs": kind.slots}
    return replace(form, name=name, arguments=arguments, num_replicas=number, role=kind.role)


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
