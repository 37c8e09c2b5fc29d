"""Every plan of a small problem, one after the other: shares only the costs and the simulation with the planner."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations_with_replacement, permutations, product

from flagvega.plan.costs import Side
from flagvega.plan.simulate import simulate
from flagvega.plan.space import Candidate, Problem, all_sides, batch_sizes, cost_candidate, make_pipeline
from flagvega.plan.stages import Work


def candidates(problem: Problem) -> Iterator[Candidate]:
    for samples in batch_sizes(problem):
        options = all_sides(problem, samples)
        for chain in chains(problem, options):
            for works in splits(problem.work.shape.layers, len(chain)):
                unlike = [i for i in range(len(chain) - 1) if chain[i].group != chain[i + 1].group]
                for flags in product((False, True), repeat=len(unlike)):
                    slow = tuple(i for i, flag in zip(unlike, flags, strict=True) if flag)
                    yield Candidate(samples, tuple(zip(chain, works, strict=True)), slow)


def chains(problem: Problem, options: list[Side]) -> Iterator[tuple[Side, ...]]:
    """Sides in pipeline order: each kind of chip in one run, within its devices."""
    groups = range(len(problem.machine.groups))
    for num in range(1, len(groups) + 1):
        for order in permutations(groups, num):
            runs = [list(runs_of([o for o in options if o.group == g], problem.machine.groups[g].count)) for g in order]
            for parts in product(*runs):
                yield tuple(side for part in parts for side in part)


def runs_of(options: list[Side], left: int) -> Iterator[tuple[Side, ...]]:
    for side in options:
        if side.degrees.size <= left:
            yield (side,)
            for rest in runs_of(options, left - side.degrees.size):
                yield (side, *rest)


def splits(layers: int, num: int) -> Iterator[tuple[Work, ...]]:
    """Only the ends of the model may have a stage without layers."""
    for cuts in combinations_with_replacement(range(layers + 1), num - 1):
        bounds = (0, *cuts, layers)
        if all(bounds[i] < bounds[i + 1] for i in range(1, num - 1)):
            yield tuple(Work(bounds[i], bounds[i + 1], i == 0, i == num - 1) for i in range(num))


def best(problem: Problem) -> tuple[float, int]:
    """(least simulated time, number of plans)."""
    least, number = float("inf"), 0
    costs = {samples: problem.stage_costs(samples) for samples in batch_sizes(problem)}
    for candidate in candidates(problem):
        number += 1
        its = costs[candidate.samples]
        stages = cost_candidate(candidate, its)
        if all(its.fits(side, stage) for (side, _), stage in zip(candidate.stages, stages, strict=True)):
            least = min(least, simulate(make_pipeline(candidate, its, stages)).total_s)
    return least, number
