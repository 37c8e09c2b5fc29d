"""Which instances to run for a traffic: how many of which form on which chips, with which roles.

Forms are those that were measured. What a set of them makes of the traffic comes from :mod:`flagvega.serve.forecast`;
what one form can take alone says which sets are worth forecasting.
"""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import product
from typing import Final

from flagvega.serve.fleets import (
    POOLED,
    Outlook,
    Problem,
    add,
    holds,
    look,
    merge,
    pack,
    price_of,
    take_alone,
    whole,
    works,
)
from flagvega.serve.kinds import PATIENCE, WORTH
from flagvega.serve.roles import find_roles, most_with_roles

PATIENCES: Final = (0.8, PATIENCE, 0.45, 0.3)
"""Those of which the best is taken for a set that is chosen."""
ROLES_WORTH: Final = 0.02
"""Share of the goodput that roles must bring: each request then needs two instances."""


def choose(problem: Problem, time_s: float) -> Outlook:
    """The best set: of most goodput, with no device that adds next to nothing; or the cheapest that holds the targets.

    Where no set holds the targets, it is the one of most goodput.
    """
    deadline = time.monotonic() + time_s
    best, other = _most(problem, deadline)
    if problem.objective == "cost":
        best = _cheapest(problem, best, deadline)
        other = look(whole(problem), problem) if best.has_roles and problem.kinds else None
    best = _trim(best, problem, deadline)
    limits = [look(best.fleet, problem, patience) for patience in PATIENCES]
    least = _least(max(outlook.outcome.good_share for outlook in limits), problem)
    return replace(next(outlook for outlook in limits if outlook.outcome.good_share >= least), other=other)


def most(problem: Problem, time_s: float) -> Outlook:
    """The set of most goodput, with all devices in use that can be."""
    return _most(problem, time.monotonic() + time_s)[0]


def _most(problem: Problem, deadline: float) -> tuple[Outlook, Outlook | None]:
    """The set of most goodput, and the best of the others: those with roles where it has none, and those without."""
    plain = look(whole(problem), problem) if problem.kinds else None
    if plain and plain.outcome.good_share >= 1 - ROLES_WORTH:
        return plain, None
    paired = find_roles(problem, whole(problem), deadline)
    if plain is None:
        assert paired, "there are kinds, or roles that can be given"
        return paired, None
    if paired and paired.outcome.good_share > plain.outcome.good_share * (1 + ROLES_WORTH):
        return paired, plain
    return plain, paired


def _least(share: float, problem: Problem) -> float:
    """Next to nothing less than this share of good requests, but not below what the targets ask for."""
    return min(share, max((1 - WORTH) * share, problem.targets.share))


def _cheapest(problem: Problem, best: Outlook, deadline: float) -> Outlook:
    """Sets by rising price, until one holds; those that cannot are passed over."""
    packs = [pack(problem.usable(chip), chip, count) for chip, count in problem.counts.items()]
    sets = {merge(parts) for parts in product(*packs)}
    enough = problem.rate_per_s / POOLED
    for fleet in sorted(filter(None, sets), key=lambda fleet: (price_of(fleet), -take_alone(fleet, problem))):
        if time.monotonic() > deadline or (holds(best, problem) and price_of(fleet) >= best.price_per_hour):
            break
        outlook = look(fleet, problem) if take_alone(fleet, problem) >= enough and works(fleet, problem) else None
        if not (outlook and holds(outlook, problem)) and most_with_roles(fleet, problem) >= enough:
            outlook = find_roles(problem, fleet, deadline, fixed=True)
        if outlook and holds(outlook, problem):
            return outlook
    return best


def _trim(best: Outlook, problem: Problem, deadline: float) -> Outlook:
    """Without the instances that add next to nothing, the dearest first."""
    least = _least(best.outcome.good_share, problem)
    trying = True
    while trying and time.monotonic() < deadline:
        trying = False
        for kind, _ in sorted(
            best.fleet, key=lambda pair: (-pair[0].price_per_hour, -pair[0].row.num_devices, pair[0].rate_per_s)
        ):
            fleet = add(best.fleet, {kind: -1})
            outlook = look(fleet, problem) if works(fleet, problem) else None
            if outlook and outlook.outcome.good_share >= least:
                best, trying = outlook, True
                break
    return best
