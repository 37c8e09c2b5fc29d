"""Readers and writers: which instances of a set only read prompts, and which only write answers.

Looked for step by step: of all sets that differ in the role of one instance, or have one more on idle chips, the best
is taken for as long as that is better. It begins from no roles, and from as much reading as writing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Final

from flagvega.serve.fleets import Fleet, Outlook, Problem, add, devices_of, look, members_of, merge, pack, works
from flagvega.serve.kinds import Kind

STEP: Final = 0.002
"""Share of good requests by which a change must be better."""


def find_roles(problem: Problem, fleet: Fleet, deadline: float, fixed: bool = False) -> Outlook | None:
    """The best set with roles; None where there is none. ``fixed``: on the devices of ``fleet``, not on all."""
    if not problem.split:
        return None
    found = [_climb(problem, start, deadline, fixed) for start in (_balanced(problem, fleet, fixed), fleet) if start]
    return max(filter(None, found), key=lambda outlook: outlook.outcome.good_share, default=None)


def most_with_roles(fleet: Fleet, problem: Problem) -> float:
    """Requests a second that no roles of these instances go beyond, by what each takes alone; 0 without any."""
    return _share_out(fleet, problem)[1] if problem.split else 0.0


def _climb(problem: Problem, start: Fleet, deadline: float, fixed: bool) -> Outlook | None:
    """What is reached from a set step by step; what is found within the first step is not cut by the deadline."""
    best = look(start, problem) if works(start, problem) else None
    while best is None or time.monotonic() < deadline:
        found: list[Outlook] = []
        for fleet in _steps(problem, start, fixed):
            if works(fleet, problem):
                found.append(look(fleet, problem))
            if found and time.monotonic() > deadline:
                break
        following = max(found, key=lambda outlook: outlook.outcome.good_share, default=None)
        if following is None or (best and following.outcome.good_share < best.outcome.good_share + STEP):
            break
        best, start = following, following.fleet
    return best if best and best.has_roles else None


def _steps(problem: Problem, fleet: Fleet, fixed: bool) -> Iterator[Fleet]:
    """Sets in which one instance has another role, or that have one more."""
    used = devices_of(fleet)
    for kind, _ in fleet:
        for other in (*problem.kinds, *problem.split):
            if other.row is kind.row and other is not kind:
                yield add(fleet, {kind: -1, other: 1})
    for kind in () if fixed else (*problem.kinds, *problem.split):
        if used[kind.row.chip] + kind.row.num_devices <= problem.counts[kind.row.chip]:
            yield add(fleet, {kind: 1})


def _balanced(problem: Problem, fleet: Fleet, fixed: bool) -> Fleet:
    """All of them with roles, as much reading as writing."""
    used = {kind.row.chip for kind, _ in fleet}
    idle = [] if fixed else [chip for chip in problem.counts if chip not in used]
    more = merge(pack(problem.usable(chip), chip, problem.counts[chip])[-1] for chip in idle)
    fleet = (*fleet, *more)
    return tuple(Counter(_share_out(fleet, problem)[0]).items())


def _share_out(fleet: Fleet, problem: Problem) -> tuple[list[Kind], float]:
    """(a kind with a role for each instance, requests a second): those read that are better at that than at writing.

    The rate is had when one of them does both in the right proportion.
    """
    rows = [kind.row for kind in members_of(fleet)]
    parts = [(problem.find(row, "prefill"), problem.find(row, "decode")) for row in rows]
    rates = [tuple(kind.rate_per_s if kind else 0.0 for kind in pair) for pair in parts]
    order = sorted(range(len(rows)), key=lambda i: -rates[i][0] / (sum(rates[i]) or 1.0))
    read, written = 0.0, sum(rate for _, rate in rates)
    chosen: list[Kind | None] = []
    most = 0.0
    for i in order:
        reads, writes = rates[i]
        written -= writes
        share = float(reads > 0)
        if reads and writes:
            share = min(1.0, max(0.0, (written + writes - read) / (reads + writes)))
        most = max(most, min(read + share * reads, written + (1 - share) * writes))
        chosen.append(parts[i][0 if share >= 0.5 else 1])
        read += share * reads
    return [kind for kind in chosen if kind], most
