"""Why there is no plan: the constraint that fails, by how much, and the nearest change that would help."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NoReturn

from flagvega.errors import Fault, NoPlanError
from flagvega.plan.compare import with_group
from flagvega.plan.schedules import is_interleaving_pinned
from flagvega.plan.search import Found, search
from flagvega.plan.space import Problem, batch_sizes, cost_candidate, most_stages, sides

PINS_OF_SIZE = (
    "tensor_model_parallel_size",
    "context_parallel_size",
    "expert_model_parallel_size",
    "expert_tensor_parallel_size",
    "plan.keep",
    "plan.order",
)
"""Keys that decide how many devices a stage takes, or which it may have."""
_GIB = 2**30
_MORE_MEMORY = (1.1, 1.25, 1.5, 2.0, 3.0, 4.0, 8.0, 16.0, 64.0, 256.0)
_MORE_HOSTS = (1, 2, 4, 8)
_LOOK_S = 0.5
"""For each look whether a change would help; until something is found a search takes up to three times as long."""
_HOSTS_S = 5.0
"""For all looks at more hosts."""


def refuse(problem: Problem, refusals: list[Fault]) -> NoReturn:
    """Raise NoPlanError with what is known."""
    if refusals:
        raise NoPlanError([Fault("every layout that would fit is refused", "plan"), *dict.fromkeys(refusals)])
    if is_interleaving_pinned(problem):
        what = "no interleaved layout with the virtual stages asked for fits: stages, times chunks, are at most the "
        what += "layers and two; micro-batches come in groups of as many as there are stages; one kind of chip has all"
        raise NoPlanError(Fault(what, "plan", _unpin(problem)))
    if not any(sides(problem, samples) for samples in batch_sizes(problem)):
        raise NoPlanError(Fault("no degrees are legal for this model on these devices", "plan", _unpin(problem)))
    for factor in _MORE_MEMORY:
        roomy = _scaled(problem, factor)
        if found := _find(roomy):
            raise NoPlanError(_memory_fault(problem, roomy, found, factor))
    raise NoPlanError(Fault("no layout satisfies the constraints, whatever the memory", "plan", _unpin(problem)))


def check_stages(problem: Problem, where: Mapping[str, str]) -> list[Fault]:
    """What keeps the devices from holding the number of stages that is given, whatever is chosen for the rest."""
    stages, room = problem.choices.num_stages, most_stages(problem)
    most = sum(room.values())
    if stages is None or not most or stages <= most:
        return []
    pins = [f"{name} ({where[name]})" for name in PINS_OF_SIZE if name in where]
    held = ", ".join(f"{number} on {problem.machine.groups[group].chip}" for group, number in room.items())
    what = f"{stages} stages do not fit on these devices: there is room for {most} ({held})"
    fix = f"at most {most}" + (f", or change {' or '.join(pins)}" if pins else "")
    return [Fault(what, where.get("pipeline_model_parallel_size", "pipeline_model_parallel_size"), fix)]


def _find(problem: Problem) -> Found | None:
    """A plan, if one is soon found."""
    try:
        return search(problem, lambda candidate: True, _LOOK_S)
    except NoPlanError:
        return None


def _scaled(problem: Problem, factor: float) -> Problem:
    groups = tuple(replace(group, memory_bytes=round(group.memory_bytes * factor)) for group in problem.machine.groups)
    machine = replace(problem.machine, groups=groups)
    return replace(problem, machine=machine)


def _memory_fault(problem: Problem, roomy: Problem, found: Found, factor: float) -> Fault:
    """The stage that exceeds its devices the most in the best plan with more memory."""
    candidate = found.candidate
    stages = cost_candidate(candidate, roomy.stage_costs(candidate.samples))
    worst = max(
        range(len(stages)),
        key=lambda i: stages[i].memory.total / problem.machine.groups[candidate.stages[i][0].group].memory_bytes,
    )
    group = problem.machine.groups[candidate.stages[worst][0].group]
    needed, there = stages[worst].memory.total / _GIB, group.memory_bytes / _GIB
    short = f"a stage on {group.chip} needs at least about {needed:.3g} GiB a device, {needed - there:.2g} GiB too much"
    enough = _more_hosts(problem) or "about as many times the devices"
    fix = f"{factor:g} x the memory, {enough}, or a smaller model or sequence would do"
    if unpinned := _unpin(problem):
        fix = f"{unpinned}; or {fix}"
    return Fault(f"the model does not fit: {short}", "plan", fix)


def _more_hosts(problem: Problem) -> str:
    """The fewest more hosts of one kind of chip with which there is a plan, in words."""
    deadline = time.monotonic() + _HOSTS_S
    for more in _MORE_HOSTS:
        for i, group in enumerate(problem.machine.groups):
            if time.monotonic() > deadline:
                return ""
            larger = replace(group, per_node=(*group.per_node, *[group.node_size] * more))
            machine = with_group(problem.machine, i, larger)
            if _find(replace(problem, machine=machine, costs=problem.costs.on(machine))):
                return f"{more} more host{'s' * (more > 1)} with {group.node_size} x {group.chip}"
    return ""


def _unpin(problem: Problem) -> str:
    """The first pin whose removal makes a plan possible, in words."""
    choices = problem.choices
    pins: dict[str, dict[str, Any]] = {
        "micro_batch_size": {"micro_batch_size": None},
        "the recompute": {"recompute": None},
        "the number of stages": {"num_stages": None},
        "the degrees": {"tp": None, "cp": None, "ep": None, "etp": None},
        "plan.max_tp": {"max_tp": None},
        "plan.order": {"order": None},
        "plan.keep": {"kept": ()},
    }
    if is_interleaving_pinned(problem):
        pins = {"virtual stages": {"virtual_stages": None, "layers_per_chunk": None}}
    for name, change in pins.items():
        if all(not getattr(choices, key) for key in change):
            continue
        freed = replace(problem, choices=replace(choices, **change))
        if _find(freed):
            return f"without {name} given there is a plan"
    return ""
