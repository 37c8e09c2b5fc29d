"""Exact search, as far as its time allows: candidates in order of a bound that no simulation undercuts.

Stages are decided from the last one backwards, because what a stage may hold in flight depends on its
distance from the end. A partial plan is dropped when its bound reaches the best simulated time; what
is left when the time is over gives the gap that is reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import inf

from flagvega.plan.bounds import Bounds
from flagvega.plan.costs import Side
from flagvega.plan.simulate import lower_bound_s, simulate
from flagvega.plan.space import Candidate, Problem, batch_sizes, cost_candidate, make_pipeline, sides
from flagvega.plan.stages import StageCost, StageCosts, Work

WIDEN = (1.03, 1.1, 1.25, 1.5, 2.0, 4.0, inf)
"""Rounds look for plans below the bound of all plans times this."""
FIRST_EXPANSIONS = 400
"""Of one number of samples in the first round; four times as many in each round that follows."""


@dataclass(frozen=True)
class Found:
    """The best plan found, and how good any other could be."""

    candidate: Candidate
    total_s: float
    bound_s: float
    """No plan of the space is faster than this."""
    num_simulated: int

    @property
    def gap(self) -> float:
        """By how much the plan may exceed the best one; 0 when it is proven best."""
        return max(0.0, self.total_s / self.bound_s - 1) if self.bound_s else inf


@dataclass(frozen=True)
class _Node:
    """A suffix of the pipeline: the stages from some point to the end."""

    bound_s: float
    depth: int
    layers: int
    """Still to be placed."""
    side: Side | None
    left: int
    """Devices of the side's group that are free."""
    untouched: int
    """Groups not used yet, as a bit set."""
    num_slow: int
    through_s: float
    """Least time to the end of the step, seen from this point of the pipeline."""
    round_s: float
    """What the first micro-batch takes from this stage to the end and back."""
    time_s: float
    optimizer_s: float
    stage: Work | None = None
    is_slow: bool = False
    """The boundary behind the stage keeps one more micro-batch in flight."""
    later: _Node | None = None


def search(problem: Problem, accept: Callable[[Candidate], bool], limit_s: float) -> Found | None:
    """The best plan whose layout is accepted; None when there is none at all within the time.

    ``accept`` is asked only about plans better than all before, and refuses what cannot be placed.
    """
    deadline = time.monotonic() + limit_s
    state = _State(problem, accept, deadline)
    batches = [batch for samples in batch_sizes(problem) if (batch := _Batch.of(problem, samples))]
    for i, widen in enumerate(WIDEN):
        least_s = min((batch.bound_s for batch in batches), default=inf)
        if least_s == inf:
            break
        for batch in sorted(batches, key=lambda batch: batch.bound_s):
            limit = min(state.best_s, least_s * widen)
            if batch.bound_s < limit:
                batch.bound_s = max(batch.bound_s, state.look(batch, limit, FIRST_EXPANSIONS * 4**i))
        least_s = min(batch.bound_s for batch in batches)
        if state.best_s <= least_s or time.monotonic() > deadline:
            break
    if state.best is None:
        return None
    bound_s = min(state.best_s, least_s)
    return Found(state.best, state.best_s, bound_s, state.num_simulated)


@dataclass
class _Batch:
    """All plans with one number of samples in a global micro-batch."""

    costs: StageCosts
    relaxed: StageCosts
    options: list[Side]
    bound_s: float
    bounds: dict[float, Bounds] = field(default_factory=dict)

    @classmethod
    def of(cls, problem: Problem, samples: int) -> _Batch | None:
        """None when no stage of it can be held by anything."""
        options = sides(problem, samples)
        if not options:
            return None
        batch = cls(problem.stage_costs(samples), problem.stage_costs(samples, relaxed=True), options, 0.0)
        batch.bound_s = batch._root_bound_s()
        return batch if batch.bound_s < inf else None

    def within(self, limit_s: float) -> Bounds:
        """Bounds for plans that take less than ``limit_s``."""
        if limit_s not in self.bounds:
            self.bounds = {limit_s: Bounds(self.relaxed, self.options, limit_s)}
        return self.bounds[limit_s]

    def _root_bound_s(self) -> float:
        """The least limit, to a few per cent from below, within which all layers can be placed."""
        loose = Bounds(self.relaxed, self.options, inf).root_s()
        if loose == inf:
            return inf
        low = high = self._fluid_s()
        while Bounds(self.relaxed, self.options, high).root_s() == inf:
            low, high = high, high * 1.3
        for _ in range(4):
            middle = (low + high) / 2
            if Bounds(self.relaxed, self.options, middle).root_s() == inf:
                low = middle
            else:
                high = middle
        return low

    def _fluid_s(self) -> float:
        """Time if layers could be cut anywhere: device-seconds of all layers over all devices."""
        rate = 0.0
        for group, its in enumerate(self.costs.machine.groups):
            layer = Work(0, 1, embedding=False, head=False)
            least = min(
                (self.relaxed.stage(side, layer, 1).time_s * side.degrees.size
                 for side in self.options if side.group == group), default=inf
            )  # fmt: skip
            rate += its.count / least
        return self.costs.num_micro_batches * self.costs.work.shape.layers / rate / 1.01


class _State:
    """The search as it goes."""

    def __init__(self, problem: Problem, accept: Callable[[Candidate], bool], deadline: float) -> None:
        self.problem, self._accept, self._deadline = problem, accept, deadline
        self.best: Candidate | None = None
        self.best_s = inf
        self.num_simulated = 0

    def look(self, batch: _Batch, limit_s: float, max_expansions: int) -> float:
        """Look for plans below ``limit_s``; a bound on all plans of the batch."""
        bounds = batch.within(limit_s)
        everything = (1 << len(self.problem.machine.groups)) - 1
        stack = [_Node(0.0, 0, self.problem.work.shape.layers, None, 0, everything, 0, 0.0, 0.0, 0.0, 0.0)]
        for expansions in range(10**12):
            if not stack:
                return limit_s
            node = stack.pop()
            below_s = min(limit_s, self.best_s)
            if node.bound_s >= below_s:
                continue
            is_complete = node.stage is not None and node.stage.embedding
            if is_complete:
                self._judge(node, batch, below_s)
                continue
            if expansions > max_expansions or time.monotonic() > self._deadline:
                return min(below_s, node.bound_s, *(other.bound_s for other in stack))
            children = [child for child in self._expand(node, batch, bounds, below_s) if child.bound_s < below_s]
            stack += sorted(children, key=lambda child: -child.bound_s)
        raise AssertionError("unreachable")

    def _expand(self, node: _Node, batch: _Batch, bounds: Bounds, below_s: float) -> Iterator[_Node]:
        """The stages that may come before a suffix."""
        choices = self.problem.choices
        if choices.num_stages is not None and node.depth >= choices.num_stages:
            return
        groups = self.problem.machine.groups
        for side in batch.options:
            is_same = node.side is not None and side.group == node.side.group
            if not is_same and not node.untouched >> side.group & 1:
                continue
            left = (node.left if is_same else groups[side.group].count) - side.degrees.size
            if left < 0:
                continue
            untouched = node.untouched if is_same else node.untouched & ~(1 << side.group)
            transfer_s = batch.costs.transfer_s(side, node.side) if node.side is not None else 0.0
            for is_slow in self._slowness(node, is_same):
                place = _Place(side, left, untouched, node.num_slow + is_slow, transfer_s, is_slow)
                yield from self._fill(node, batch, bounds, below_s, place)

    def _slowness(self, node: _Node, is_same: bool) -> tuple[bool, ...]:
        """Whether the boundary to the suffix may, or must, keep one more micro-batch in flight."""
        if node.side is None or is_same or not self.problem.choices.slow_boundaries:
            return (False,)
        return (False, True)

    def _fill(self, node: _Node, batch: _Batch, bounds: Bounds, below_s: float, place: _Place) -> Iterator[_Node]:
        """A stage at a place with every number of layers."""
        costs, m = batch.costs, batch.costs.num_micro_batches
        is_last = node.side is None
        in_flight = node.depth + 1 + place.num_slow
        fewest = 0 if is_last or node.layers == 0 else 1
        for layers in range(fewest, node.layers + 1):
            begin = node.layers - layers
            for is_first in (False, True) if begin == 0 and node.layers else (begin == 0,):
                if is_first and not self._may_begin(place.side, node.depth + 1, costs.samples):
                    continue
                work = Work(begin, node.layers, is_first, is_last)
                stage = costs.stage(place.side, work, in_flight)
                if m * stage.time_s >= below_s:
                    return
                if not costs.fits(place.side, stage):
                    if is_first:
                        continue
                    return
                round_s = node.round_s + stage.time_s + 2 * place.transfer_s
                through_s = max(node.through_s + stage.time_s + 2 * place.transfer_s, m * stage.time_s)
                if not is_last:
                    through_s = max(through_s, round_s + _pair_s(stage, node.time_s, place, in_flight, m))
                optimizer_s = max(node.optimizer_s, stage.optimizer_s)
                rest_s = 0.0
                if not is_first:
                    rest_s = bounds.least_s(begin, in_flight, place.side.group, place.left, place.untouched)
                yield _Node(
                    through_s + rest_s + optimizer_s, node.depth + 1, begin, place.side, place.left, place.untouched,
                    place.num_slow, through_s, round_s, stage.time_s, optimizer_s, work, place.is_slow, node,
                )  # fmt: skip

    def _may_begin(self, side: Side, num_stages: int, samples: int) -> bool:
        choices = self.problem.choices
        if choices.num_stages not in (None, num_stages):
            return False
        return choices.micro_batch_size in (None, samples // side.degrees.dp)

    def _judge(self, node: _Node, batch: _Batch, below_s: float) -> None:
        """Simulate a whole plan, unless its bound says that it cannot be better."""
        candidate = _candidate(node, batch.costs.samples)
        pipeline = make_pipeline(candidate, batch.costs, cost_candidate(candidate, batch.costs))
        if lower_bound_s(pipeline) >= below_s:
            return
        self.num_simulated += 1
        total_s = simulate(pipeline).total_s
        if total_s < self.best_s and self._accept(candidate):
            self.best, self.best_s = candidate, total_s


@dataclass(frozen=True)
class _Place:
    """Where the next earlier stage would be."""

    side: Side
    left: int
    untouched: int
    num_slow: int
    transfer_s: float
    is_slow: bool


def _pair_s(stage: StageCost, next_s: float, place: _Place, in_flight: int, m: int) -> float:
    """What is left after the first round, by the loop over the boundary behind a stage: see ``lower_bound_s``."""
    step = 3 if place.is_slow else 2
    loops = (m - 1 - in_flight) // step + 1 if m > in_flight else 0
    return loops * (stage.time_s + next_s + 2 * place.transfer_s) + (m - 1 - loops * step) * stage.backward_s


def _candidate(node: _Node, samples: int) -> Candidate:
    stages: list[tuple[Side, Work]] = []
    slow: list[int] = []
    here: _Node | None = node
    while here is not None and here.side is not None and here.stage is not None:
        if here.is_slow:
            slow.append(len(stages))
        stages.append((here.side, here.stage))
        here = here.later
    return Candidate(samples, tuple(stages), tuple(slow))
