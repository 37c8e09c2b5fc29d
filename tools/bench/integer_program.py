"""The planner's search against an integer program that HiGHS solves with proof, under a cost that both can express.

A step under 1F1B as the event simulation has it is no linear cost. ``lower_bound_s`` of flagvega/plan/simulate.py is:
the most of some 300 sums over stages, counted by their place from the end. So the search, all of it as it is, is given
that function in place of the simulation to judge whole plans by; and the program minimises the same number.

Instances: 16 hosts of 2 or 3 kinds with 8 devices each, 24 layers, 16 to 48 micro-batches. A stage is one host (tp 8);
open are the order of kinds, how many hosts are used, and the layers of each stage, none allowed at the ends. What a
stage takes at a place (recompute included, where its memory asks for it) is asked of the costs; nothing else is shared.
The program is told the planner's answer only as a number that it need not look above.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from unittest.mock import patch

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from flagvega.model.shape import ModelShape
from flagvega.model.workload import Choices, Workload
from flagvega.plan.analytic import AnalyticCosts
from flagvega.plan.costs import Degrees, Side
from flagvega.plan.machine import Group, Link, Machine
from flagvega.plan.search import Found, search
from flagvega.plan.simulate import Pipeline, Simulated, lower_bound_s
from flagvega.plan.space import Problem
from flagvega.plan.stages import StageCost, Work

HOSTS, LAYERS = 16, 24
SOLVER_S = 600.0
AMPLE_BYTES = 10**15
SIDE = Degrees(tp=8, sp=True)
Terms = dict[int, float]
"""A sum: coefficients by variable."""


@dataclass(frozen=True)
class Comparison:
    """One instance."""

    what: str
    num_binaries: int
    ratio: float
    """Of the planner's cost to what the solver proved to be the least."""
    is_proven: bool
    """By the planner."""
    memory_binds: bool
    search_s: float
    solver_s: float


def draw(seed: int) -> Problem:
    """Hosts of random kinds, of random memory."""
    rng = random.Random(seed)
    shape = ModelShape(LAYERS, 4096, 32, 8, 128, 14336, 64000)
    work = Workload(shape, 4096, "bf16", rng.choice([16, 24, 32, 48]), 1, 4, 12)
    kinds = rng.choice([2, 3, 3])
    counts = [1] * kinds
    for _ in range(HOSTS - kinds):
        counts[rng.randrange(kinds)] += 1
    network = Link(5e-5, rng.choice([1e9, 5e9, 25e9]))
    groups = tuple(
        Group(f"chip-{i}", (8,) * number, int(rng.choice([1.5, 2.5, 4.0, 20.0]) * 1e9), rng.uniform(0.3, 1.0) * 1e15,
              rng.uniform(1.0, 3.0) * 1e12, Link(1e-5, 2e11), network)
        for i, number in enumerate(counts)
    )  # fmt: skip
    machine = Machine(groups)
    choices = Choices(tp=(8,), sp=(True,), distributed_optimizer=False, slow_boundaries=False)
    return Problem(machine, work, choices, AnalyticCosts(work, machine, False), lambda side: True)


def compare(seed: int, time_s: float) -> Comparison:
    """Search, then solve."""
    problem = draw(seed)
    begin_s = time.process_time()
    found = search_by_bound(problem, time_s)
    middle_s = time.process_time()
    program = Program(problem, found.total_s if found else inf)
    proven_s = program.solve()
    ample = replace(problem, machine=replace(problem.machine, groups=tuple(
        replace(group, memory_bytes=AMPLE_BYTES) for group in problem.machine.groups
    )))  # fmt: skip
    end_s = time.process_time()
    roomy = search_by_bound(ample, time_s)
    assert roomy is not None
    binds = found is None or roomy.total_s < found.total_s * (1 - 1e-9)
    what = f"{HOSTS} hosts of {len(problem.machine.groups)} kinds x {LAYERS} layers"
    ratio = (1.0 if found is None else found.total_s / proven_s) if proven_s < inf else float(found is None)
    return Comparison(what, program.num_binaries, ratio, found is not None and found.gap == 0, binds,
                      middle_s - begin_s, end_s - middle_s)  # fmt: skip


def search_by_bound(problem: Problem, time_s: float) -> Found | None:
    """The planner's search in so many processor seconds, plans judged by ``lower_bound_s``, not by the simulation."""

    def judge(pipeline: Pipeline) -> Simulated:
        return Simulated(lower_bound_s(pipeline), ())

    with patch("flagvega.plan.search.simulate", judge):
        return search(problem, lambda candidate: True, time_s, clock=time.process_time)


@dataclass(frozen=True)
class _Stage:
    """A binary variable: stage at a place from the end, on a kind of chip, with so many layers."""

    place: int
    group: int
    layers: int
    is_first: bool
    cost: StageCost


class Program:
    """The integer program of one instance: the least ``lower_bound_s``, in units of ``scale_s``."""

    def __init__(self, problem: Problem, most_s: float) -> None:
        self._problem = problem
        self._costs = problem.stage_costs(1)
        self._m = self._costs.num_micro_batches
        self._groups = range(len(problem.machine.groups))
        self._scale_s = most_s if most_s < inf else 1.0
        self._stages = [its for its in self._all_stages() if self._m * its.cost.time_s <= most_s * (1 + 1e-9)]
        places = range(2, HOSTS + 1)
        keys = [(s, g, h) for s in places for g in self._groups for h in self._groups]
        self._boundary = {key: len(self._stages) + i for i, key in enumerate(keys)}
        """From the stage at a place, on g, to the one behind it, on h."""
        self._bound = len(self._stages) + len(keys)
        self._optimizer = self._bound + 1
        self._rows: list[tuple[Terms, float, float]] = []

    @property
    def num_binaries(self) -> int:
        """Variables that are 0 or 1."""
        return len(self._stages)

    def solve(self) -> float:
        """The cost that no plan undercuts; infinite without any plan."""
        self._say_what_plans_are()
        self._say_what_they_take()
        size = self._optimizer + 1
        cost = np.zeros(size)
        cost[self._bound] = cost[self._optimizer] = 1.0
        for i, its in enumerate(self._stages):
            cost[i] = its.is_first * its.cost.reduction_s / self._scale_s
        entries = [(row, column, value) for row, (terms, _, _) in enumerate(self._rows)
                   for column, value in terms.items()]  # fmt: skip
        rows, columns, values = zip(*entries, strict=True)
        matrix = coo_array((values, (rows, columns)), shape=(len(self._rows), size)).tocsr()
        lower, upper = ([row[i] for row in self._rows] for i in (1, 2))
        highest = np.ones(size)
        highest[self._bound :] = inf
        integrality = np.zeros(size)
        integrality[: len(self._stages)] = 1
        solved = milp(cost, integrality=integrality, bounds=Bounds(np.zeros(size), highest),
                      constraints=LinearConstraint(matrix, lower, upper),
                      options={"time_limit": SOLVER_S, "mip_rel_gap": 0.0})  # fmt: skip
        return inf if solved.status == 2 else float(solved.mip_dual_bound) * self._scale_s

    def _all_stages(self) -> list[_Stage]:
        found = []
        for place in range(1, HOSTS + 1):
            for group in self._groups:
                for is_first in (False, True):
                    for layers in range(0 if place == 1 or is_first else 1, LAYERS + 1):
                        work = Work(0 if is_first else LAYERS - layers, layers if is_first else LAYERS,
                                    is_first, place == 1)  # fmt: skip
                        if is_first and place == 1 and layers < LAYERS:
                            continue
                        side = Side(group, SIDE)
                        cost = self._costs.stage(side, work, place)
                        if self._costs.fits(side, cost):
                            found.append(_Stage(place, group, layers, is_first, cost))
        return found

    def _say_what_plans_are(self) -> None:
        """One stage at the end, one first; kinds in one run each, within their hosts; all layers, once."""
        num, stages = len(self._problem.machine.groups), self._stages
        self._add({i: 1.0 for i, its in enumerate(stages) if its.place == 1}, 1, 1)
        self._add({i: 1.0 for i, its in enumerate(stages) if its.is_first}, 1, 1)
        self._add({i: float(its.layers) for i, its in enumerate(stages)}, LAYERS, LAYERS)
        for g in self._groups:
            hosts = len(self._problem.machine.groups[g].per_node)
            self._add({i: 1.0 for i, its in enumerate(stages) if its.group == g}, 0, hosts)
            entered = {i: 1.0 for i, its in enumerate(stages) if its.group == g and its.is_first}
            entered |= {i: 1.0 for (_, a, b), i in self._boundary.items() if b == g and a != g}
            self._add(entered, 0, 1)
            for place in range(1, HOSTS + 1):
                here = [(i, its) for i, its in enumerate(stages) if its.place == place and its.group == g]
                if place > 1:
                    to = {self._boundary[place, g, h]: -1.0 for h in range(num)}
                    self._add({i: 1.0 for i, _ in here} | to, 0, 0)
                before = {self._boundary[place + 1, h, g]: -1.0 for h in range(num)} if place < HOSTS else {}
                self._add({i: 1.0 for i, its in here if not its.is_first} | before, 0, 0)

    def _say_what_they_take(self) -> None:
        """Each sum of ``lower_bound_s`` is no more than the bound."""
        m, places = self._m, range(1, HOSTS + 1)
        time = {s: self._sum(s, lambda cost: cost.time_s) for s in places}
        backward = {s: self._sum(s, lambda cost: cost.backward_s) for s in places}
        ahead = {s: self._transfers(s) for s in places}
        round_s = _plus(*((1.0, time[s]) for s in places), *((2.0, ahead[s]) for s in places))
        for s in places:
            before = _plus(*((1.0, time[j]) for j in range(s + 1, HOSTS + 1)),
                           *((2.0, ahead[j]) for j in range(s + 1, HOSTS + 1)))  # fmt: skip
            self._at_most_bound(_plus((m, time[s]), (1.0, before)))
            if m > s:
                self._at_most_bound(_plus((2.0, round_s), (-1.0, before), (m - 1 - s, time[s])))
            for u in range(1, s + 1):
                step = s - u + 1
                loops = (m - 1 - s) // step + 1 if m > s else 0
                loop = _plus(*((1.0, time[j]) for j in range(u, s + 1)),
                             *((2.0, ahead[j]) for j in range(u + 1, s + 1)))  # fmt: skip
                self._at_most_bound(_plus((1.0, round_s), (loops, loop), (m - 1 - loops * step, backward[s])))
            slowest = self._sum(s, lambda cost: cost.optimizer_s)
            self._add(_plus((1.0, slowest), (-1.0, {self._optimizer: 1.0})), -inf, 0)

    def _sum(self, place: int, figure: Callable[[StageCost], float]) -> Terms:
        """A figure of whatever stage is at a place."""
        return {i: figure(its.cost) / self._scale_s for i, its in enumerate(self._stages) if its.place == place}

    def _transfers(self, place: int) -> Terms:
        """Over the boundary behind a place; there is none behind the last stage."""
        return {
            i: self._costs.transfer_s(Side(g, SIDE), Side(h, SIDE)) / self._scale_s
            for (s, g, h), i in self._boundary.items()
            if s == place
        }

    def _at_most_bound(self, terms: Terms) -> None:
        self._add(_plus((1.0, terms), (-1.0, {self._bound: 1.0})), -inf, 0)

    def _add(self, terms: Terms, least: float, most: float) -> None:
        self._rows.append((terms, least, most))


def _plus(*parts: tuple[float, Terms]) -> Terms:
    """The sum of sums, each so many times."""
    found: Terms = {}
    for times, terms in parts:
        for variable, value in terms.items():
            found[variable] = found.get(variable, 0.0) + times * value
    return found
