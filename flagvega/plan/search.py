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

from flagvega.errors import Fault, NoPlanError
from flagvega.plan.bounds import Bounds, StageTimes
from flagvega.plan.costs import Side
from flagvega.plan.simulate import lower_bound_s, simulate
from flagvega.plan.space import Candidate, Problem, batch_sizes, cost_candidate, make_pipeline, sides
from flagvega.plan.stages import StageCost, StageCosts, Work

STEP, HURRIED_STEP = 1.06, 1.25
"""Looks for a first plan have limits that grow by this factor, and by the other when time runs short."""
MAX_STAGES, COARSE_SHARE = 8, 0.5
"""Where a kind of chip has more devices than this, plans with at most so many stages of it come first, for a share
of the time: there are few of them."""
HURRY = 0.7
"""Time runs short when less than this share of it is left."""
PATIENCE = 3.0
"""Until there is a first plan the search goes on for so many times its time."""
NEAR = 1.01
"""Looks for a better plan have a limit half way between the bound and the best, until these are this near."""
MAX_LEVELS = 60
"""After as many looks the limit is lifted: whatever exists is found."""
FIRST_EXPANSIONS = 300
"""Partial plans that a first look at some limit may expand; each look that it ends may twice as many next time."""


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


def search(problem: Problem, accept: Callable[[Candidate], bool], time_s: float) -> Found | None:
    """The best plan whose layout is accepted; None when there is none at all.

    :raises NoPlanError: when the time is over before a first plan is found.

    ``accept`` is asked only about plans better than all before, and refuses what cannot be placed.
    """
    begin = time.monotonic()
    state = _State(problem, accept, begin + time_s)
    if any(group.count > MAX_STAGES for group in problem.machine.groups):
        coarse = _batches(problem, lambda side: side.degrees.size * MAX_STAGES >= _count(problem, side))
        _sweep(state, coarse, begin, time_s * COARSE_SHARE, patience=0.0)
    batches = _batches(problem, lambda side: True)
    _sweep(state, batches, begin, time_s, PATIENCE)
    if state.best is None:
        if any(batch.bound_s < inf for batch in batches):
            raise NoPlanError(Fault("no layout was found in the time there was", "plan.time_s", "give it more seconds"))
        return None
    bound_s = min(state.best_s, *(batch.bound_s for batch in batches))
    return Found(state.best, state.best_s, bound_s, state.num_simulated)


def _count(problem: Problem, side: Side) -> int:
    return problem.machine.groups[side.group].count


def _batches(problem: Problem, keep: Callable[[Side], bool]) -> list[_Batch]:
    return [batch for samples in batch_sizes(problem) if (batch := _Batch.of(problem, samples, keep))]


def _sweep(state: _State, batches: list[_Batch], begin: float, time_s: float, patience: float) -> None:
    """Look for plans in all batches, nearest bound first, until all is proven or the time since ``begin`` is over."""
    deadline = begin + time_s
    while batches and (left_s := deadline - time.monotonic()) > (0.0 if state.best else -patience * time_s):
        rising = [batch for batch in batches if batch.level_s < state.best_s]
        if rising:
            batch = min(rising, key=lambda batch: batch.level_s)
            batch.num_levels += 1
            step = STEP if left_s > HURRY * time_s else HURRIED_STEP
            limit_s = min(state.best_s, batch.level_s * step if batch.num_levels < MAX_LEVELS else inf)
            batch.level_s = limit_s
        else:
            unproven = [batch for batch in batches if batch.bound_s < state.best_s]
            if not unproven:
                break
            batch = min(unproven, key=lambda batch: batch.bound_s)
            is_near = batch.bound_s * NEAR > state.best_s
            limit_s = state.best_s if is_near else (batch.bound_s + state.best_s) / 2
        if not state.look(batch, limit_s):
            batch.max_expansions *= 2


@dataclass
class _Batch:
    """All plans with one number of samples in a global micro-batch."""

    costs: StageCosts
    times: StageTimes
    options: list[Side]
    bound_s: float
    """No plan of the batch is faster than this."""
    level_s: float = 0.0
    """Plans below this have been looked for, if not to the end."""
    num_levels: int = 0
    max_expansions: int = FIRST_EXPANSIONS
    bounds: dict[float, Bounds] = field(default_factory=dict)

    @classmethod
    def of(cls, problem: Problem, samples: int, keep: Callable[[Side], bool]) -> _Batch | None:
        """None when no stage of it can be held by anything."""
        options = [side for side in sides(problem, samples) if keep(side)]
        if not options:
            return None
        batch = cls(problem.stage_costs(samples), StageTimes(problem.stage_costs(samples, relaxed=True)), options, 0.0)
        batch.bound_s = batch.level_s = batch._root_bound_s()
        return batch if batch.bound_s < inf else None

    def within(self, limit_s: float) -> Bounds:
        """Bounds for plans that take less than ``limit_s``."""
        if limit_s not in self.bounds:
            self.bounds = {limit_s: Bounds(self.times, self.options, limit_s)}
        return self.bounds[limit_s]

    def _root_bound_s(self) -> float:
        """The least limit, to a few per cent from below, within which all layers can be placed."""
        loose = Bounds(self.times, self.options, inf).root_s()
        if loose == inf:
            return inf
        low = high = self._fluid_s()
        while Bounds(self.times, self.options, high).root_s() == inf:
            low, high = high, high * 1.3
        for _ in range(4):
            middle = (low + high) / 2
            if Bounds(self.times, self.options, middle).root_s() == inf:
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
                (self.times.costs.stage(side, layer, 1).time_s * side.degrees.size
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

    def look(self, batch: _Batch, limit_s: float) -> bool:
        """Look for plans below ``limit_s``, raise the batch's bound by what is ruled out; whether to the end."""
        open_s = self._look(batch, limit_s)
        batch.bound_s = max(batch.bound_s, min(limit_s, open_s))
        return open_s == inf

    def _look(self, batch: _Batch, limit_s: float) -> float:
        """The least bound of what is left to be looked at; infinite when that is nothing."""
        bounds = batch.within(limit_s)
        everything = (1 << len(self.problem.machine.groups)) - 1
        stack = [_Node(0.0, 0, self.problem.work.shape.layers, None, 0, everything, 0, 0.0, 0.0, 0.0, 0.0)]
        for expansions in range(10**12):
            if not stack:
                return inf
            node = stack.pop()
            below_s = min(limit_s, self.best_s)
            if node.bound_s >= below_s:
                continue
            is_complete = node.stage is not None and node.stage.embedding
            if is_complete:
                self._judge(node, batch, below_s)
                continue
            is_late = self.best is not None and time.monotonic() > self._deadline
            if expansions > batch.max_expansions or is_late:
                return min(node.bound_s, *(other.bound_s for other in stack))
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
