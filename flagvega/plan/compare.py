"""Why the plan is the one: what keeps each other shape slower, and which one change to the cluster would gain most."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, groupby

from flagvega.errors import NoPlanError
from flagvega.plan.costs import Degrees, Side
from flagvega.plan.explain import Other, Outlook, binding, look_at
from flagvega.plan.interleaved import schedule_period_s
from flagvega.plan.machine import Group, Machine
from flagvega.plan.search import search
from flagvega.plan.space import Candidate, Problem

MORE_MEMORY, FASTER = 1.25, 2.0
"""What is tried: so many times the memory, so many times the rate of a link."""
MAX_PAIRS = 6
MORE_TIME = 5
"""Where only a search can tell, it may take so many times as long."""


@dataclass(frozen=True)
class Change:
    """A cluster that differs in one thing."""

    name: str
    machine: Machine
    is_simulated: bool = True
    """Whether the same plan on the changed cluster tells something already; more devices it leaves idle."""


@dataclass(frozen=True)
class Gain:
    """What a change would do to the step, at least."""

    name: str
    total_s: float
    share: float
    """Of the plan's time, or of its price where that is the objective."""


def other_shapes(others: Sequence[tuple[Candidate, float]], outlook: Outlook, problem: Problem) -> list[Other]:
    """The best plans of other shapes, each with what makes it slower than the chosen one."""
    found = []
    for candidate, _ in others:
        other = look_at(candidate, problem)
        found.append(Other(describe_shape(candidate, problem), other.total_s, why_worse(other, outlook, problem)))
    return found


def find_shapes(candidate: Candidate, problem: Problem, number: int, time_s: float) -> list[tuple[Candidate, float]]:
    """Up to so many plans of other shapes than a candidate's, the best that are found in the time, best first."""
    deadline = time.monotonic() + time_s
    known = {shape_of(candidate)}
    found: list[tuple[Candidate, float]] = []
    for i in range(number):
        left_s = (deadline - time.monotonic()) / (number - i)
        if left_s <= 0:
            break
        try:
            other = search(problem, lambda its: shape_of(its) not in known, left_s)
        except NoPlanError:
            continue
        if other is None:
            break
        known.add(shape_of(other.candidate))
        found.append((other.candidate, other.total_s))
    return sorted(found, key=lambda its: its[1])


def shape_of(candidate: Candidate) -> tuple[Side, ...]:
    """What a plan has apart from its split of layers: chips in order, with their degrees and numbers of stages."""
    return tuple(side for side, _ in candidate.stages)


def describe_shape(candidate: Candidate, problem: Problem) -> str:
    """``2 x emu-s dp2, emu-l tp2``: stages in pipeline order, those alike put together."""
    words = []
    for side, run in groupby(candidate.stages, key=lambda stage: stage[0]):
        number = len(list(run))
        name = f"{problem.machine.groups[side.group].chip} {describe_degrees(side.degrees)}"
        words.append(f"{number} x {name}" if number > 1 else name)
    return ", ".join(words)


def describe_degrees(degrees: Degrees) -> str:
    """``tp2 dp4``: those above 1."""
    words = [f"{name}{degree}" for name in ("tp", "cp", "ep", "dp") if (degree := getattr(degrees, name)) > 1]
    return " ".join(words + (["sp"] if degrees.sp else [])) or "1"


def why_worse(other: Outlook, best: Outlook, problem: Problem) -> str:
    """The part of the step that another plan loses most in."""
    if problem.objective == "cost" and other.total_s <= best.total_s:
        return f"{price(other, problem) / price(best, problem) - 1:.1%} dearer: its devices cost more than they save"
    parts, least = _parts(other), _parts(best)
    lost = [mine - its for mine, its in zip(parts, least, strict=True)]
    if max(lost) <= 1e-9 * best.total_s:
        return "as fast"
    steady, ramp, tail = (f"{max(0.0, loss) / best.total_s:.1%}" for loss in lost)
    worst = max(range(3), key=lost.__getitem__)
    if worst == 0:
        return f"loses {steady} in the steady state, limited by {binding(other, problem)}"
    if worst == 1:
        return f"loses {ramp} filling and draining {len(other.stages)} stages"
    return f"loses {tail} after the last backward pass: reducing gradients, and the optimizer"


def _parts(outlook: Outlook) -> tuple[float, float, float]:
    """Seconds of the steady state, of filling and draining, and of what comes after."""
    steady_s = outlook.pipeline.num_micro_batches * schedule_period_s(outlook.pipeline)
    end_s = max(outlook.finish_s)
    return steady_s, end_s - steady_s, outlook.total_s - end_s


def price(outlook: Outlook, problem: Problem) -> float:
    """Of a step, by the price per hour of the devices that it uses."""
    groups = problem.machine.groups
    per_hour = sum(side.degrees.size * groups[side.group].price_per_hour for side, _ in outlook.candidate.stages)
    return per_hour * outlook.total_s / 3600


def find_gains(outlook: Outlook, problem: Problem, time_s: float) -> list[Gain]:
    """What each change to the cluster would gain, most first.

    The plan is simulated on every changed cluster, and a better one is looked for as long as there is time: more
    devices first, for they need another plan, and are left out where none is found. So a gain may be larger than
    what is told, never smaller.
    """
    deadline = time.monotonic() + time_s
    before = _score(outlook, problem)
    found = []
    tried = sorted(changes(problem, outlook), key=lambda change: change.is_simulated)
    weights = [1 if change.is_simulated else MORE_TIME for change in tried]
    for i, change in enumerate(tried):
        there = replace(problem, machine=change.machine, costs=problem.costs.on(change.machine))
        looks = [look_at(outlook.candidate, there)] if change.is_simulated else []
        left_s = (deadline - time.monotonic()) * weights[i] / sum(weights[i:])
        if left_s > 0:
            looks += _search(there, left_s)
        if looks:
            best = min(looks, key=lambda look: _score(look, there))
            found.append(Gain(change.name, best.total_s, 1 - _score(best, there) / before))
    return sorted(found, key=lambda gain: -gain.share)


def _search(problem: Problem, time_s: float) -> list[Outlook]:
    try:
        found = search(problem, lambda candidate: True, time_s)
    except NoPlanError:
        return []
    return [look_at(found.candidate, problem)] if found else []


def changes(problem: Problem, outlook: Outlook) -> Iterator[Change]:
    """One thing more or faster, for each thing that there is."""
    machine, groups = problem.machine, problem.machine.groups
    for i, group in enumerate(groups):
        if problem.choices.recompute is None:
            roomy = replace(group, memory_bytes=round(group.memory_bytes * MORE_MEMORY))
            yield Change(f"{MORE_MEMORY - 1:.0%} more memory on each {group.chip}", with_group(machine, i, roomy))
        if len(group.per_node) > 1:
            network = replace(group.network, bytes_per_s=group.network.bytes_per_s * FASTER)
            quick = with_group(machine, i, replace(group, network=network))
            yield Change(f"{FASTER:g} x the network between hosts of {group.chip}", quick)
        number = group.node_size
        more = with_group(machine, i, replace(group, per_node=(*group.per_node, number)))
        yield Change(f"one more host with {number} x {group.chip}", more, is_simulated=False)
    order = [side.group for side, _ in outlook.candidate.stages]
    neighbours = zip(order, order[1:], strict=False)
    pairs = [*neighbours, *((i, j) for i, j in combinations(range(len(groups)), 2))]
    for i, j in list(dict.fromkeys((min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]))[:MAX_PAIRS]:
        link = machine.link_between(i, j)
        fast = replace(link, bytes_per_s=link.bytes_per_s * FASTER)
        name = f"{FASTER:g} x the link between {groups[i].chip} and {groups[j].chip}"
        yield Change(name, replace(machine, between={**machine.between, (i, j): fast, (j, i): fast}))


def with_group(machine: Machine, index: int, group: Group) -> Machine:
    """The machine with another group in the place of one."""
    groups = tuple(group if i == index else its for i, its in enumerate(machine.groups))
    return replace(machine, groups=groups)


def _score(outlook: Outlook, problem: Problem) -> float:
    """What the best plan has least of."""
    return price(outlook, problem) if problem.objective == "cost" else outlook.total_s
