"""The search over both schedules: 1F1B, and interleaved where the engine runs it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from math import inf

from flagvega.errors import NoPlanError
from flagvega.plan.cheapest import search_cheapest
from flagvega.plan.interleaved_search import search_interleaved
from flagvega.plan.search import Found, search
from flagvega.plan.space import Candidate, Problem

INTERLEAVED_SHARE = 0.25
"""The search among interleaved schedules may take this share of the time on top, where both are open."""


def is_interleaving_pinned(problem: Problem) -> bool:
    """Whether only interleaved schedules are asked for."""
    choices = problem.choices
    return choices.layers_per_chunk is not None or (choices.virtual_stages or 1) > 1


def search_schedules(
    problem: Problem, accept: Callable[[Candidate], bool], time_s: float, top_k: int = 1
) -> Found | None:
    """The best plan of either schedule, and ``top_k - 1`` of other shapes; None when there is none at all.

    :raises NoPlanError: when the time is over before a first plan is found.
    """
    choices = problem.choices
    if problem.objective == "cost" and not is_interleaving_pinned(problem):
        return search_cheapest(problem, accept, time_s)
    if is_interleaving_pinned(problem):
        return _search_interleaved(problem, accept, None, time_s)
    failure: NoPlanError | None = None
    found = None
    try:
        found = search(problem, accept, time_s, top_k)
    except NoPlanError as error:
        failure = error
    # What a plan costs by the hour is weighed among 1F1B schedules only.
    if choices.can_interleave and choices.virtual_stages is None and problem.objective == "time":
        found = _search_interleaved(problem, accept, found, INTERLEAVED_SHARE * time_s)
    if found is None and failure is not None:
        raise failure
    return found


def _search_interleaved(problem: Problem, accept: Callable[[Candidate], bool], known: Found | None,
                        time_s: float) -> Found | None:  # fmt: skip
    best_s = known.total_s if known else inf
    its = search_interleaved(problem, accept, best_s, time.monotonic() + time_s)
    if known is None:
        return Found(its.candidate, its.total_s, its.bound_s, its.num_simulated) if its.candidate else None
    num = known.num_simulated + its.num_simulated
    bound_s = min(known.bound_s, its.bound_s)
    if its.candidate is None:
        return replace(known, bound_s=bound_s, num_simulated=num)
    others = ((known.candidate, known.total_s), *known.others)
    return Found(its.candidate, its.total_s, bound_s, num, others)
