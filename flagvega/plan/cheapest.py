"""The plan of the lowest price: the fastest plans of parts of the machine, and a bound on any price.

A price is seconds times the price per hour of the devices that a plan uses; so of plans that use the same devices the
fastest is the cheapest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from math import inf

from flagvega.errors import NoPlanError
from flagvega.plan.chunks import cost_stages, pipeline_of
from flagvega.plan.costs import Side
from flagvega.plan.interleaved import run_schedule
from flagvega.plan.machine import Machine
from flagvega.plan.search import Found, search
from flagvega.plan.space import Candidate, Problem, batch_sizes, sides
from flagvega.plan.stages import Work

MAX_PARTS = 64
"""Parts of the machine that are looked at."""


def search_cheapest(problem: Problem, accept: Callable[[Candidate], bool], time_s: float) -> Found | None:
    """The cheapest plan found; its gap is that of its price, and honest but seldom 0.

    :raises NoPlanError: when the time is over before a first plan is found.
    """
    deadline = time.monotonic() + time_s
    parts = list(_parts(problem.machine))[:MAX_PARTS]
    best: tuple[float, Candidate, float] | None = None
    others: list[tuple[float, Candidate, float]] = []
    failure: NoPlanError | None = None
    num_simulated = 0
    for i, machine in enumerate(parts):
        left_s = (deadline - time.monotonic()) / (len(parts) - i)
        if left_s <= 0:
            break
        part = replace(problem, machine=machine, costs=problem.costs.on(machine), objective="time")
        try:
            found = search(part, accept, left_s)
        except NoPlanError as error:
            failure = error
            continue
        if found is None:
            continue
        num_simulated += found.num_simulated
        total_s = _total_s(found.candidate, problem)
        others.append((_per_hour(found.candidate, problem) * total_s, found.candidate, total_s))
        best = min(others, key=lambda its: its[0])
    if best is None:
        if failure is not None:
            raise failure
        return None
    price, candidate, total_s = best
    # As the bound on the price is to the price, so is this to the time.
    bound_s = total_s * min(1.0, least_price(problem) / price)
    shapes: dict[tuple[Side, ...], tuple[Candidate, float]] = {}
    for _, other, other_s in sorted(others, key=lambda its: its[0]):
        shapes.setdefault(tuple(side for side, _ in other.stages), (other, other_s))
    return Found(candidate, total_s, bound_s, num_simulated, tuple(shapes.values())[1:])


def least_price(problem: Problem) -> float:
    """No plan costs less, in price per hour times seconds: each layer where it costs least, nobody ever idle."""
    least = inf
    layer = Work(0, 1, embedding=False, head=False)
    for samples in batch_sizes(problem):
        costs = problem.stage_costs(samples, relaxed=True)
        groups = problem.machine.groups
        prices = [
            costs.stage(side, layer, 1).time_s * side.degrees.size * groups[side.group].price_per_hour
            for side in sides(problem, samples)
        ]
        least = min(least, costs.num_micro_batches * problem.work.shape.layers * min(prices, default=inf))
    return least


def _parts(machine: Machine) -> Iterator[Machine]:
    """The machine, each kind of chip alone, then mixes; of each kind all hosts, or a power of two of them."""
    yield machine
    choices = []
    for group in machine.groups:
        # Devices of a kind on one host are counted one by one, hosts as a whole.
        one = len(group.per_node) == 1
        most = group.count if one else len(group.per_node)
        counts = [0, *(2**i for i in range(most.bit_length()) if 2**i < most), most]
        choices.append([(count,) if one else group.per_node[:count] or (0,) for count in reversed(counts)])
    mixes = sorted(product(*choices), key=lambda mix: sum(sum(its) > 0 for its in mix))
    for mix in mixes:
        if any(sum(its) for its in mix) and mix != tuple(group.per_node for group in machine.groups):
            groups = (replace(group, per_node=its) for group, its in zip(machine.groups, mix, strict=True))
            yield replace(machine, groups=tuple(groups))


def _per_hour(candidate: Candidate, problem: Problem) -> float:
    groups = problem.machine.groups
    return sum(side.degrees.size * groups[side.group].price_per_hour for side, _ in candidate.stages)


def _total_s(candidate: Candidate, problem: Problem) -> float:
    costs = problem.stage_costs(candidate.samples)
    return run_schedule(pipeline_of(candidate, costs, cost_stages(candidate, costs))).total_s
