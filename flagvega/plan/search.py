"""Exact search, as far as its time allows: candidates in order of a bound that no simulation undercuts.

Every plan has a load: the most that one of its stages adds to the first micro-batch's round. Plans are looked at by
number of samples in a global micro-batch and by range of load: a table tells the least round of a range, and with the
range's lower end a bound on its plans; a descent through the table finds them. What is left when the time is
over gives the gap that is reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby, product
from math import inf, log2

from flagvega.errors import Fault, NoPlanError
from flagvega.plan.batch import Batch
from flagvega.plan.costs import Side
from flagvega.plan.descent import Descent, Node
from flagvega.plan.prices import Prices
from flagvega.plan.simulate import lower_bound_s, simulate
from flagvega.plan.space import Candidate, Problem, batch_sizes, cost_candidate, make_pipeline
from flagvega.plan.table import Table

FIRST_LIMIT, STEP = 1.15, 1.2
"""Until there is a plan, looks have a limit on the time of a step: so many times what it takes if nobody waits at all,
and so many times the last one."""
PATIENCE = 3.0
"""Until there is a first plan the search goes on for so many times its time."""
MAX_LOOKS = 60
"""After so many looks without a plan the limit is lifted: whatever exists is found."""
FIRST_EXPANSIONS = 200
"""Partial plans that a first descent into a range may expand; each may twice as many as the one before."""
GLANCES, LOOSE, GLANCE_SHARE, USUAL = (1.1, 1.25), 1.6, 0.5, 48
"""Loads, as shares of the time of a step in which nobody waits, at which good plans are looked for; times that a
step may then take; the share of the time for these looks; and the number of micro-batches to begin with."""
PARTS, COARSE_EXPANSIONS, COARSE_SHARE = (4, 8, 16), 60, 0.16
"""Before that plans are looked for that cut a kind of chip in no more parts than this, with so many partial plans each
and for such a share of the time."""
PRICED, FEW_SIDES, FEW_STEPS = 0.005, 8, 200_000
"""Ranges wider than this share of the best time are bounded by prices of devices before they get a table, unless
there are so few ways to hold a stage, or so few steps to a table, that it takes no longer."""
MAX_BYTES = 200_000_000
"""Of tables that are kept for later."""
NARROW = 1e-3
"""Ranges are not cut when they are within so much of the best time."""


@dataclass(frozen=True)
class Found:
    """The best plan found, and how good any other could be."""

    candidate: Candidate
    total_s: float
    bound_s: float
    """No plan of the space is faster than this."""
    num_simulated: int
    others: tuple[tuple[Candidate, float], ...] = ()
    """Plans of other shapes and their times, best first."""

    @property
    def gap(self) -> float:
        """By how much the plan may exceed the best one; 0 when it is proven best."""
        return max(0.0, self.total_s / self.bound_s - 1) if self.bound_s else inf


def search(problem: Problem, accept: Callable[[Candidate], bool], time_s: float, top_k: int = 1,
           clock: Callable[[], float] = time.monotonic) -> Found | None:  # fmt: skip
    """The best plan whose layout is accepted; None when there is none at all.

    :raises NoPlanError: when the time is over before a first plan is found.

    ``accept`` is asked about plans better than all before, and about ``top_k - 1`` plans of other shapes; it refuses
    what cannot be placed. The others are the best of those that the search has come across.
    """
    return _Search(problem, accept, time_s, top_k, clock).run()


Shape = tuple[tuple[Side, int], ...]
"""Sides in pipeline order, each with its number of stages."""


def shape_of(candidate: Candidate) -> Shape:
    """What of a plan is left without the split of layers."""
    return tuple((side, len(list(run))) for side, run in groupby(side for side, _ in candidate.stages))


class _OutOfTimeError(Exception):
    """The time is over in the middle of something."""


@dataclass
class _Range:
    """Plans of a batch with a load above ``low_s``, up to ``high_s``."""

    batch: Batch
    low_s: float
    high_s: float
    bound_s: float
    """None of them is faster."""
    descent: Descent | None = None
    limit_s: float = 0.0
    """The descent knows those that take less."""
    expansions: int = FIRST_EXPANSIONS
    looks: int = 0
    priced_s: float = inf
    """The upper end that prices were found for; infinite when they are to be found anew."""
    round_s: float = 0.0
    """No plan has a round below this."""

    def next_limit_s(self) -> float:
        """A limit beyond which nobody looks before there is a plan."""
        self.looks += 1
        return self.bound_s * (FIRST_LIMIT if self.looks == 1 else STEP) if self.looks < MAX_LOOKS else inf


class _Search:
    """The search as it goes."""

    def __init__(self, problem: Problem, accept: Callable[[Candidate], bool], time_s: float, top_k: int,
                 clock: Callable[[], float]) -> None:  # fmt: skip
        self._clock = clock
        self._top_k = top_k
        self._shapes: dict[Shape, tuple[Candidate, float]] = {}
        self._problem, self._accept = problem, accept
        self._begin, self._time_s = clock(), time_s
        self.best: Candidate | None = None
        self.best_s = inf
        self.num_simulated = 0
        self._simulated: set[Candidate] = set()

    def run(self) -> Found | None:
        """Look into the range with the least bound, until no bound is below the best time."""
        batches = [Batch(self._problem, samples) for samples in batch_sizes(self._problem)]
        self._ranges = [_Range(batch, batch.least_load_s, inf, batch.fluid_s) for batch in batches if batch.is_possible]
        self._prices = {batch.samples: Prices(batch) for batch in batches}
        try:
            self._glance_coarsely()
            if self.best is None:
                self._glance()
            while self._ranges:
                self._tick()
                its = min(self._ranges, key=lambda its: its.bound_s)
                if its.bound_s >= self.best_s:
                    break
                rest = self._price(its) if self._is_wide(its) else self._look(its)
                self._ranges.remove(its)
                self._ranges += rest
                self._forget()
        except _OutOfTimeError:
            if self.best is None:
                fault = Fault("no layout was found in the time there was", "plan.time_s", "give it more seconds")
                raise NoPlanError(fault) from None
        if self.best is None:
            return None
        bound_s = min([self.best_s, *(its.bound_s for its in self._ranges)])
        return Found(self.best, self.best_s, bound_s, self.num_simulated, self._others(self.best))

    def _others(self, best: Candidate) -> tuple[tuple[Candidate, float], ...]:
        """The best plans of other shapes."""
        found: list[tuple[Candidate, float]] = []
        for shape, (candidate, total_s) in sorted(self._shapes.items(), key=lambda item: item[1][1]):
            if len(found) + 1 >= self._top_k:
                break
            if shape != shape_of(best) and self._accept(candidate):
                found.append((candidate, total_s))
        return tuple(found)

    def _glance_coarsely(self) -> None:
        """Look for good plans that have few stages of each kind of chip: their tables are small."""
        until = self._begin + COARSE_SHARE * self._time_s
        usual = sorted(self._ranges, key=lambda its: abs(log2(its.batch.num_micro_batches / USUAL)))
        for parts, whole in product(PARTS, usual):
            batch = whole.batch.coarser(parts)
            is_coarser = batch.is_possible and batch.options != whole.batch.options
            for share in GLANCES if is_coarser else ():
                cap_s, limit_s = share * whole.batch.fluid_s, min(self.best_s, LOOSE * whole.batch.fluid_s)
                if self._clock() > until:
                    return
                part = _Range(batch, whole.low_s, cap_s, whole.bound_s, expansions=COARSE_EXPANSIONS)
                self._tabulate(part, limit_s)
                if part.bound_s < limit_s and part.descent is not None:
                    self._descend(part)

    def _is_wide(self, its: _Range) -> bool:
        """Whether a range has no table and is to be cut, or bounded, before it gets one."""
        num_sides, num_steps = sum(map(len, its.batch.options.values())), its.batch.table_steps
        is_small = num_sides <= FEW_SIDES or num_steps <= FEW_STEPS
        if self.best is None or its.descent is not None or is_small:
            return False
        high_s = min(its.high_s, self.best_s - its.batch.least_sum_s)
        return its.priced_s > high_s + PRICED * self.best_s or high_s - its.low_s > PRICED * self.best_s

    def _price(self, its: _Range) -> list[_Range]:
        """Bound a range by prices of devices, or cut it in two when that was done."""
        best_s, batch = self.best_s, its.batch
        its.high_s = min(its.high_s, best_s - max(batch.least_sum_s, its.round_s))
        if its.high_s <= its.low_s:
            return []
        if its.priced_s <= its.high_s + PRICED * best_s:
            middle_s = (its.low_s + its.high_s) / 2
            below = _Range(batch, its.low_s, middle_s, its.bound_s, round_s=its.round_s)
            its.low_s = middle_s
            its.bound_s = max(its.bound_s, middle_s + its.round_s)
            its.priced_s = inf
            return [below, its]
        prices = self._prices[batch.samples]
        its.round_s = max(its.round_s, prices.least_round_s(its.high_s, best_s, best_s - its.low_s, self._tick))
        its.priced_s = its.high_s
        its.bound_s = max(its.bound_s, min(best_s, its.low_s + its.round_s))
        self._spread(its, its.round_s)
        return [its]

    def _spread(self, known: _Range, round_s: float) -> None:
        """What no round of a range undercuts, none with less load does."""
        for its in self._ranges:
            if its.batch is known.batch and its.high_s <= known.high_s:
                its.round_s = max(its.round_s, round_s)
                its.bound_s = max(its.bound_s, its.low_s + its.round_s)

    def _glance(self) -> None:
        """Look at loads that good plans have, at usual numbers of micro-batches first."""
        until = self._begin + GLANCE_SHARE * self._time_s
        for whole in sorted(self._ranges, key=lambda its: abs(log2(its.batch.num_micro_batches / USUAL))):
            for share in GLANCES:
                cap_s, limit_s = share * whole.batch.fluid_s, min(self.best_s, LOOSE * whole.batch.fluid_s)
                too_late = self._clock() > until
                if too_late or not whole.low_s < cap_s < limit_s - whole.batch.least_sum_s:
                    break
                part = _Range(whole.batch, whole.low_s, cap_s, whole.bound_s)
                self._tabulate(part, limit_s)
                self._ranges.append(part)
                self._forget()
                whole.low_s, whole.bound_s = cap_s, max(whole.bound_s, cap_s + whole.batch.least_sum_s)
                if part.bound_s < limit_s:
                    if part.descent is not None:
                        self._descend(part)
                    break

    def _forget(self) -> None:
        """Keep tables as long as there is room, those of the least bounds; others are made anew when needed."""
        num_bytes = 0
        for its in sorted(self._ranges, key=lambda its: its.bound_s):
            if its.descent is not None:
                num_bytes += its.descent.table.num_bytes
                if num_bytes > MAX_BYTES:
                    its.descent = None

    def _tick(self) -> None:
        allowed_s = self._time_s * (PATIENCE if self.best is None else 1)
        if self._clock() - self._begin > allowed_s:
            raise _OutOfTimeError

    def _look(self, its: _Range) -> list[_Range]:
        """Look for plans in a range; what is left of it."""
        if its.descent is None or its.limit_s < self.best_s:
            self._tabulate(its, self.best_s if self.best else its.next_limit_s())
        load_s = self._descend(its) if its.bound_s < min(its.limit_s, self.best_s) else None
        if load_s is None:
            its.bound_s, its.descent = max(its.bound_s, its.limit_s), None
            return [its] if its.limit_s < self.best_s else []
        its.expansions *= 4
        return self._cut(its, load_s) if self.best else [its]

    def _tabulate(self, its: _Range, limit_s: float) -> None:
        """Make the table of all plans of a range that take less than a limit."""
        high_s = min(its.high_s, limit_s - its.batch.least_sum_s)
        least_s = inf
        if its.low_s < high_s or limit_s == inf:
            table = Table(its.batch, high_s, limit_s, limit_s - its.low_s, self._tick)
            its.descent, least_s = Descent(table, its.low_s), table.least_s
        its.limit_s = limit_s
        its.bound_s = max(its.bound_s, min(limit_s, its.low_s + least_s))
        if its.low_s < its.high_s <= high_s:
            self._spread(its, min(least_s, limit_s - its.low_s))

    def _cut(self, its: _Range, load_s: float) -> list[_Range]:
        """Two ranges in place of one, above and below the load of a plan that was found."""
        assert its.descent is not None
        low_s, high_s, batch = its.low_s, min(its.high_s, self.best_s - its.batch.least_sum_s), its.batch
        if high_s - low_s < NARROW * self.best_s:
            return [its]
        middle_s = (low_s + high_s) / 2
        if load_s > low_s:
            middle_s = min(middle_s, load_s)
        below = _Range(batch, low_s, middle_s, its.bound_s, expansions=its.expansions)
        its.low_s = middle_s
        its.bound_s = max(its.bound_s, min(its.limit_s, middle_s + its.descent.table.least_s))
        return [below, its]

    def _descend(self, its: _Range) -> float | None:
        """Simulate plans of a range; the load of the first one, or None when all have been looked at."""
        descent = its.descent
        assert descent is not None
        descent.least_load_s = its.low_s
        stack = descent.roots(self.best_s)
        first_s = inf
        for _ in range(its.expansions):
            if not stack:
                return None
            node = stack.pop()
            if node.bound_s >= self.best_s:
                continue
            if node.is_complete:
                first_s = min(first_s, node.load_s)
                self._judge(descent, node)
            else:
                self._tick()
                stack += descent.children(node, self.best_s)
        return first_s

    def _judge(self, descent: Descent, node: Node) -> None:
        """Simulate a whole plan, unless its bound says that it cannot be better."""
        candidate, costs = descent.candidate(node), descent.batch.costs
        if candidate in self._simulated:
            return
        self._simulated.add(candidate)
        pipeline = make_pipeline(candidate, costs, cost_candidate(candidate, costs))
        if lower_bound_s(pipeline) >= self.best_s:
            return
        self.num_simulated += 1
        total_s = simulate(pipeline).total_s
        if self._top_k > 1 and total_s < self._shapes.get(shape_of(candidate), (candidate, inf))[1]:
            self._shapes[shape_of(candidate)] = candidate, total_s
        if total_s < self.best_s and self._accept(candidate):
            self.best, self.best_s = candidate, total_s
