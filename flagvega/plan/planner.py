"""Plans a spec: what is offered, what there is, the search, and the layout that ranks will read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeVar

from flagvega.cluster.nodes import Cluster
from flagvega.cluster.source import find_cluster
from flagvega.config.spec import Spec
from flagvega.engine import Engine
from flagvega.errors import ConfigError, Fault
from flagvega.layout.build import build_plan
from flagvega.layout.check import check_plan
from flagvega.layout.plan import Mesh, Plan
from flagvega.layout.request import LayoutRequest, MeshRequest
from flagvega.model.workload import Choices, Offer
from flagvega.plan.chunks import cost_stage, cost_stages
from flagvega.plan.costs import Side
from flagvega.plan.explain import Outlook, look_at, outlook_of, predict
from flagvega.plan.layouts import cuts_across_hosts, make_request, read_candidate, used_part
from flagvega.plan.machine import Machine
from flagvega.plan.pins import Reason, check_choices, read_pins, usable_part
from flagvega.plan.refusal import check_stages, refuse
from flagvega.plan.schedules import search_schedules
from flagvega.plan.search import Found
from flagvega.plan.sources import choose_costs
from flagvega.plan.space import Candidate, Problem
from flagvega.plan.survey import survey

DEFAULT_TIME_S, DEFAULT_TOP_K = 10, 4

T = TypeVar("T")


@dataclass(frozen=True)
class Planned:
    """A plan and where it came from."""

    spec: Spec
    """The spec, complete: what it left to the planner is filled in."""
    plan: Plan
    """With its predictions."""
    cluster: Cluster
    """The hosts and devices that the plan uses."""
    problem: Problem
    found: Found
    outlook: Outlook
    top_k: int
    """Shapes to tell of, the plan's own among them."""


def plan_spec(spec: Spec, engine: Engine, better: Callable[[float], None] = lambda step_s: None) -> Planned:
    """The best layout for a spec; ``better`` is told the step of each one that is better than all before.

    :raises ConfigError: when the question is not well put.
    :raises NoPlanError: when no layout satisfies the constraints.
    """
    offer, problem, cluster = pose(spec, engine)
    block = spec.blocks.get("plan", {})
    search_s, top_k = float(block.get("time_s", DEFAULT_TIME_S)), block.get("top_k", DEFAULT_TOP_K)
    placed: dict[Candidate, tuple[Plan, Cluster]] = {}
    refusals: list[Fault] = []

    def accept(candidate: Candidate) -> bool:
        try:
            placed[candidate] = place(candidate, offer, problem, cluster, spec, engine)
        except ConfigError as error:
            refusals.extend(error.faults)
            return False
        better(look_at(candidate, problem).total_s)
        return True

    found = search_schedules(problem, accept, search_s, top_k)
    if found is None:
        refuse(problem, refusals)
    found = replace(found, others=found.others[: top_k - 1])
    plan, used = placed[found.candidate]
    outlook = look_at(found.candidate, problem)
    plan = replace(plan, predictions=predict(outlook, problem, found.bound_s))
    return Planned(engine.settle(spec, plan), plan, used, problem, found, outlook, top_k)


def pose(spec: Spec, engine: Engine) -> tuple[Offer, Problem, Cluster]:
    """The planning problem of a spec; ConfigError with all that is wrong with model, cluster and pins."""
    settled = engine.settle(spec, None)
    faults = list(engine.check(settled))
    offer = None if faults else _gather(lambda: engine.offer(spec), faults)
    layout = offer.layout if offer else LayoutRequest((MeshRequest(),), 1, 1, 1)
    cluster = _gather(lambda: usable_part(spec, find_cluster(spec, layout)), faults)
    machine = None
    if cluster is not None:
        found, dtype = cluster, offer.workload.dtype if offer else None
        machine = _gather(lambda: survey(spec, found, dtype), faults)
    if offer is None or cluster is None or machine is None:
        raise ConfigError(dict.fromkeys(faults))
    reason = _reasons(settled, engine, machine)
    choices = offer.choices
    try:
        choices = read_pins(spec, choices, machine, reason)
    except ConfigError as error:
        faults += error.faults
    faults += check_choices(choices, machine, offer.workload, spec.where)
    if faults:
        raise ConfigError(dict.fromkeys(faults))
    costs = choose_costs(spec, offer.workload, machine, choices.distributed_optimizer)
    objective = spec.blocks.get("plan", {}).get("objective", "time")
    problem = Problem(costs.machine, offer.workload, choices, costs, lambda side: reason(side) is None, objective)
    if faults := check_stages(problem, spec.where):
        raise ConfigError(faults)
    return replace(offer, choices=choices), problem, cluster


def _reasons(spec: Spec, engine: Engine, machine: Machine) -> Reason:
    """The engine's word on degrees, asked once for each."""

    @cache
    def reason(side: Side) -> str | None:
        its = side.degrees
        devices = tuple((0, i) for i in range(its.size))
        mesh = Mesh(0, machine.groups[side.group].chip, its.tp, its.cp, its.ep, its.dp, its.etp, its.sp, devices)
        return engine.legal_mesh(spec, mesh)

    return reason


def _gather(ask: Callable[[], T], faults: list[Fault]) -> T | None:
    """What is asked for; None, and the faults told, when it cannot be had."""
    try:
        return ask()
    except ConfigError as error:
        faults += error.faults
        return None


def estimate_plan(spec: Spec, engine: Engine, cluster: Cluster, plan: Plan) -> tuple[Outlook, Problem]:
    """What a plan that is given would do: its own recompute, whether it fits or not."""
    work = engine.workload(spec)
    machine = survey(spec, cluster, work.dtype)
    costs = choose_costs(spec, work, machine, plan.distributed_optimizer)
    problem = Problem(
        machine, work, Choices(distributed_optimizer=plan.distributed_optimizer), costs, lambda side: True
    )
    candidate = read_candidate(plan, machine)
    stages = []
    for i in range(len(candidate.stages)):
        pinned = replace(problem, choices=replace(problem.choices, recompute=plan.stages[i].recompute))
        stages.append(cost_stage(candidate, pinned.stage_costs(candidate.samples), i))
    return outlook_of(candidate, problem, tuple(stages)), problem


def place(candidate: Candidate, offer: Offer, problem: Problem, cluster: Cluster, spec: Spec,
          engine: Engine) -> tuple[Plan, Cluster]:  # fmt: skip
    """The plan of a candidate on real devices; ConfigError when it cannot be placed, or the engine refuses it."""
    stages = cost_stages(candidate, problem.stage_costs(candidate.samples))
    used = used_part(candidate, problem.machine, cluster)
    choices = offer.choices
    request = make_request(
        candidate, stages, problem.machine, offer.layout, choices.distributed_optimizer, choices.recompute
    )
    plan = build_plan(request, used)
    if cuts_across_hosts(plan):
        raise ConfigError(Fault("tensor parallelism would cross hosts"))
    if faults := [*check_plan(plan), *engine.check_plan(engine.settle(spec, plan), plan)]:
        raise ConfigError(faults)
    return plan, used
