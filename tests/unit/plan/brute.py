"""Every plan of a small problem, all of them timed: shares only the costs of stages and transfers with the planner.

Space, memory of stages in flight and schedule are written down a second time, straight from what docs/planner.md says.
Plans whose stages do the same passes in the same order are timed together, as arrays. Pins that are obeyed: degrees,
order, number of stages, slow boundaries.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, permutations, product
from math import comb, inf

import numpy as np
import numpy.typing as npt

from flagvega.plan.costs import Degrees, Side
from flagvega.plan.space import Problem
from flagvega.plan.stages import StageCosts, Work

AT_ONCE = 40_000
"""Plans that are timed together."""
AMPLE_BYTES = 10**18
Chain = tuple[int, ...]
"""Indices of sides in pipeline order."""
Numbers = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Best:
    """The least time of all plans, and what the instance is like."""

    least_s: float
    """Infinite when no plan fits."""
    num_plans: int
    """Of the space, those that do not fit included."""
    ample_s: float
    """The least time if memory were without limit."""

    @property
    def memory_binds(self) -> bool:
        """Whether a faster plan would be there with more memory."""
        return self.ample_s < self.least_s * (1 - 1e-9)


def count(problem: Problem, enough: int) -> int:
    """Number of plans, or a number above ``enough`` as soon as there are more."""
    found, layers = 0, problem.work.shape.layers
    for samples in batches(problem):
        options = sides(problem, samples)
        for chain in chains(problem, options):
            unlike = len(boundaries(problem, options, chain))
            found += num_splits(layers, len(chain)) * (1 << unlike)
            if found > enough:
                return found
    return found


def best(problem: Problem) -> Best:
    """Time every plan."""
    ample = replace(problem, machine=replace(problem.machine, groups=tuple(
        replace(group, memory_bytes=AMPLE_BYTES) for group in problem.machine.groups
    )))  # fmt: skip
    least_s, ample_s, number = inf, inf, 0
    for samples in batches(problem):
        options = sides(problem, samples)
        by_limits: dict[tuple[int, ...], list[Chain]] = defaultdict(list)
        for chain in chains(problem, options):
            unlike = boundaries(problem, options, chain)
            for flags in product((0, 1), repeat=len(unlike)):
                slow = [boundary for boundary, flag in zip(unlike, flags, strict=True) if flag]
                num = len(chain)
                by_limits[tuple(num - s + sum(i >= s for i in slow) for s in range(num))].append(chain)
        here = _Timing(problem.stage_costs(samples), options)
        roomy = _Timing(ample.stage_costs(samples), options)
        for in_flight, alike in by_limits.items():
            cuts = splits(problem.work.shape.layers, len(in_flight))
            rows = max(1, AT_ONCE // max(1, len(cuts)))
            for first in range(0, len(alike), rows):
                some = np.array(alike[first : first + rows])
                number += len(some) * len(cuts)
                least_s = min(least_s, here.least_s(some, cuts, in_flight))
                if not here.is_roomy(roomy, in_flight):
                    ample_s = min(ample_s, roomy.least_s(some, cuts, in_flight))
    return Best(least_s, number, min(ample_s, least_s))


def batches(problem: Problem) -> list[int]:
    """Samples that a global micro-batch may have."""
    unit = problem.work.batch_unit
    return [samples for samples in range(1, unit + 1) if unit % samples == 0]


def sides(problem: Problem, samples: int) -> list[Side]:
    """Every way to hold a stage."""
    experts = problem.work.shape.experts
    num_experts = experts.num if experts is not None else 1
    choices, found = problem.choices, []
    for index, group in enumerate(problem.machine.groups):
        tps = [tp for tp in (1, 2, 4, 8) if tp <= group.node_size and tp in (choices.tp or (tp,))]
        eps = [ep for ep in (1, 2, 4, 8) if num_experts % ep == 0]
        for tp, ep, dp in product(tps, eps, range(1, group.count + 1)):
            for etp in choices.etp or ((tp,) if experts is None else {tp, 1}):
                if samples % dp == 0 and tp * dp <= group.count and tp * dp % (ep * etp) == 0:
                    found.append(Side(index, Degrees(tp, 1, ep, etp, dp, sp=tp > 1)))
    return found


def chains(problem: Problem, options: list[Side]) -> Iterator[Chain]:
    """Sides in pipeline order: each kind of chip in one run, within its devices."""
    groups, choices = problem.machine.groups, problem.choices
    runs = {
        g: list(_runs([i for i, side in enumerate(options) if side.group == g], options, group.count))
        for g, group in enumerate(groups)
    }
    for num in range(1, len(groups) + 1):
        for order in permutations(range(len(groups)), num):
            names = [groups[g].chip for g in order]
            if choices.order is not None and names != [name for name in choices.order if name in names]:
                continue
            for parts in product(*(runs[g] for g in order)):
                chain = tuple(index for part in parts for index in part)
                if choices.num_stages in (None, len(chain)):
                    yield chain


def _runs(its: list[int], options: list[Side], left: int) -> Iterator[Chain]:
    for index in its:
        size = options[index].degrees.size
        if size <= left:
            yield (index,)
            for rest in _runs(its, options, left - size):
                yield (index, *rest)


def boundaries(problem: Problem, options: list[Side], chain: Chain) -> list[int]:
    """Those that may keep one more micro-batch in flight."""
    groups = [options[index].group for index in chain]
    return [i for i in range(len(chain) - 1) if problem.choices.slow_boundaries and groups[i] != groups[i + 1]]


def splits(layers: int, num: int) -> Indices:
    """Bounds of stages in layers, a row for each split: only the ends of the model may have none."""
    cuts = list(combinations(range(layers + 1), num - 1))
    found = np.zeros((len(cuts), num + 1), dtype=np.intp)
    found[:, 1:num], found[:, num] = np.array(cuts, dtype=np.intp).reshape(len(cuts), num - 1), layers
    return found


def num_splits(layers: int, num: int) -> int:
    """Rows of :func:`splits`."""
    number: int = comb(layers + 1, num - 1)
    return number


class _Timing:
    """Times plans of one number of samples in a global micro-batch."""

    def __init__(self, costs: StageCosts, options: list[Side]) -> None:
        self._costs, self._options = costs, options
        self._layers, self._m = costs.work.shape.layers, costs.num_micro_batches
        self._transfer = np.array([[costs.transfer_s(a, b) for b in options] for a in options])
        self._tables: dict[tuple[int, bool, bool], Numbers] = {}

    def least_s(self, chains: Indices, cuts: Indices, in_flight: tuple[int, ...]) -> float:
        """The least time of the chains with each of the splits."""
        num = len(in_flight)
        numbers = []
        fits = np.ones((len(chains), len(cuts)), dtype=bool)
        for s, limit in enumerate(in_flight):
            table = self._table(limit, s == 0, s == num - 1)
            its = table[chains[:, s, None], cuts[:, s], cuts[:, s + 1]]
            fits &= its[..., 0] < inf
            numbers.append(its)
        row, column = np.nonzero(fits)
        if not len(row):
            return inf
        stages = [np.ascontiguousarray(its[row, column].T) for its in numbers]
        transfer = [self._transfer[chains[row, s], chains[row, s + 1]] for s in range(num - 1)]
        forward, backward, reduction, optimizer = zip(*stages, strict=True)
        ends = run(list(forward), list(backward), transfer, in_flight, self._m)
        last = np.max([end + left for end, left in zip(ends, reduction, strict=True)], axis=0)
        return float((last + np.max(optimizer, axis=0)).min())

    def is_roomy(self, ample: _Timing, in_flight: tuple[int, ...]) -> bool:
        """Whether with ample memory all these stages would be the same."""
        last = len(in_flight) - 1
        return all(
            np.array_equal(self._table(limit, s == 0, s == last), ample._table(limit, s == 0, s == last))
            for s, limit in enumerate(in_flight)
        )

    def _table(self, in_flight: int, embedding: bool, head: bool) -> Numbers:
        """By side, first and last layer: forward, backward, reduction, optimizer; infinite without room."""
        key = min(in_flight, self._m), embedding, head
        if key not in self._tables:
            found = np.full((len(self._options), self._layers + 1, self._layers + 1, 4), inf)
            for i, side in enumerate(self._options):
                for begin in range(1 if embedding else self._layers + 1):
                    for end in range(self._layers if head else begin, self._layers + 1):
                        stage = self._costs.stage(side, Work(begin, end, embedding, head), key[0])
                        if self._costs.fits(side, stage):
                            times = stage.forward_s, stage.backward_s, stage.reduction_s, stage.optimizer_s
                            found[i, begin, end] = times
            self._tables[key] = found
        return self._tables[key]


def run(forward: list[Numbers], backward: list[Numbers], transfer: list[Numbers], in_flight: tuple[int, ...],
        num_micro_batches: int) -> list[Numbers]:  # fmt: skip
    """When each stage's last backward pass ends, of many plans at once."""
    last, m = len(forward) - 1, num_micro_batches
    orders = [_passes(limit, m) for limit in in_flight]
    done = [0] * len(forward)
    free: list[Numbers] = [np.zeros_like(its) for its in forward]
    ready: dict[tuple[int, str, int], Numbers] = {(0, "F", i): free[0] for i in range(m)}
    link: dict[tuple[int, str], Numbers] = {}
    while any(done[s] < 2 * m for s in range(last + 1)):
        for s in range(last + 1):
            while done[s] < 2 * m and (s, *orders[s][done[s]]) in ready:
                way, i = orders[s][done[s]]
                takes = forward[s] if way == "F" else backward[s]
                free[s] = np.maximum(free[s], ready.pop((s, way, i))) + takes
                done[s] += 1
                to = s + 1 if way == "F" else s - 1
                if way == "F" and s == last:
                    ready[s, "B", i] = free[s]
                elif to >= 0:
                    sent = np.maximum(free[s], link[s, way]) if (s, way) in link else free[s]
                    link[s, way] = ready[to, way, i] = sent + transfer[min(s, to)]
    return free


def _passes(limit: int, m: int) -> list[tuple[str, int]]:
    """What a stage does, in order."""
    ahead = min(limit - 1, m)
    order = [("F", i) for i in range(ahead)]
    for i in range(m - ahead):
        order += [("F", ahead + i), ("B", i)]
    return order + [("B", i) for i in range(m - ahead, m)]
