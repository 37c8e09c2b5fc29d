"""Plans a spec: what is offered, what there is, the search, and the layout that ranks will read."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flagvega.cluster.nodes import Cluster
from flagvega.cluster.source import find_cluster
from flagvega.config.spec import Spec
from flagvega.engine import Engine
from flagvega.errors import ConfigError, Fault
from flagvega.layout.build import build_plan
from flagvega.layout.check import check_plan
from flagvega.layout.plan import Mesh, Plan
from flagvega.model.workload import Choices, Offer
from flagvega.plan.analytic import AnalyticCosts
from flagvega.plan.costs import Side
from flagvega.plan.explain import Outlook, look_at, outlook_of, predict
from flagvega.plan.layouts import cuts_across_hosts, make_request, read_candidate, used_part
from flagvega.plan.refusal import refuse
from flagvega.plan.search import Found, search
from flagvega.plan.space import Candidate, Problem, cost_candidate
from flagvega.plan.survey import survey

DEFAULT_TIME_S = 10


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


def plan_spec(spec: Spec, engine: Engine) -> Planned:
    """The best layout for a spec.

    :raises ConfigError: when the question is not well put.
    :raises NoPlanError: when no layout satisfies the constraints.
    """
    offer, problem, cluster = pose(spec, engine)
    search_s = float(spec.blocks.get("plan", {}).get("time_s", DEFAULT_TIME_S))
    placed: dict[Candidate, tuple[Plan, Cluster]] = {}
    refusals: list[Fault] = []

    def accept(candidate: Candidate) -> bool:
        try:
            placed[candidate] = place(candidate, offer, problem, cluster, spec, engine)
        except ConfigError as error:
            refusals.extend(error.faults)
            return False
        return True

    found = search(problem, accept, search_s)
    if found is None:
        refuse(problem, refusals)
    plan, used = placed[found.candidate]
    outlook = look_at(found.candidate, problem)
    plan = replace(plan, predictions=predict(outlook, problem, found.bound_s))
    return Planned(engine.settle(spec, plan), plan, used, problem, found, outlook)


def pose(spec: Spec, engine: Engine) -> tuple[Offer, Problem, Cluster]:
    """The planning problem of a spec."""
    offer = engine.offer(spec)
    cluster = find_cluster(spec, offer.layout)
    machine = survey(spec, cluster, offer.workload.dtype)
    costs = AnalyticCosts(offer.workload, machine, offer.choices.distributed_optimizer)
    known: dict[Side, bool] = {}

    def is_legal(side: Side) -> bool:
        if side not in known:
            its = side.degrees
            devices = tuple((0, i) for i in range(its.size))
            mesh = Mesh(0, machine.groups[side.group].chip, its.tp, its.cp, its.ep, its.dp, its.etp, its.sp, devices)
            known[side] = engine.legal_mesh(settled, mesh) is None
        return known[side]

    settled = engine.settle(spec, None)
    return offer, Problem(machine, offer.workload, offer.choices, costs, is_legal), cluster


def estimate_plan(spec: Spec, engine: Engine, cluster: Cluster, plan: Plan) -> tuple[Outlook, Problem]:
    """What a plan that is given would do: its own recompute, whether it fits or not."""
    work = engine.workload(spec)
    machine = survey(spec, cluster, work.dtype)
    costs = AnalyticCosts(work, machine, plan.distributed_optimizer)
    problem = Problem(
        machine, work, Choices(distributed_optimizer=plan.distributed_optimizer), costs, lambda side: True
    )
    candidate = read_candidate(plan, machine)
    stages = []
    for i, (side, part) in enumerate(candidate.stages):
        pinned = replace(problem, choices=replace(problem.choices, recompute=plan.stages[i].recompute))
        stages.append(pinned.stage_costs(candidate.samples).stage(side, part, candidate.in_flight(i)))
    return outlook_of(candidate, problem, tuple(stages)), problem


def place(candidate: Candidate, offer: Offer, problem: Problem, cluster: Cluster, spec: Spec,
          engine: Engine) -> tuple[Plan, Cluster]:  # fmt: skip
    """The plan of a candidate on real devices; ConfigError when it cannot be placed, or the engine refuses it."""
    stages = cost_candidate(candidate, problem.stage_costs(candidate.samples))
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
