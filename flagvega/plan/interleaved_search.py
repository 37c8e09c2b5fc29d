"""Search among interleaved schedules: one mesh, stages of several chunks, layers as even as can be but at the ends.

The space is small enough to be enumerated: shapes (devices of a stage, stages, chunks) in order of a bound, and for
each the layers of the first and of the last stage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

from flagvega.plan.chunks import chunked_stages, cost_stages, deal, pipeline_of
from flagvega.plan.costs import Side
from flagvega.plan.interleaved import Interleaved, interleaved_bound_s, simulate_interleaved
from flagvega.plan.space import Candidate, Problem, batch_sizes, sides
from flagvega.plan.stages import StageCosts, Work


@dataclass(frozen=True)
class FoundInterleaved:
    """What the search found, if anything is better than what was known before."""

    candidate: Candidate | None
    total_s: float
    """The best time known, this candidate's or that from before."""
    bound_s: float
    """No interleaved plan of the space is faster."""
    num_simulated: int


@dataclass(frozen=True)
class _Hold:
    bound_s: float
    relaxed: StageCosts
    side: Side


@dataclass(frozen=True)
class _Shape:
    bound_s: float
    samples: int
    side: Side
    num_stages: int
    num_chunks: int


def search_interleaved(problem: Problem, accept: Callable[[Candidate], bool], best_s: float,
                       deadline: float) -> FoundInterleaved:  # fmt: skip
    """The best interleaved plan faster than ``best_s``; ``deadline`` by ``time.monotonic``."""
    costs: dict[int, StageCosts] = {}
    best: Candidate | None = None
    num_simulated = 0
    bound_s = best_s
    heap: list[tuple[float, int, _Hold | _Shape]] = []
    pushed = count()
    for hold in _holds(problem):
        heappush(heap, (hold.bound_s, next(pushed), hold))
    while heap:
        least_s, _, entry = heappop(heap)
        if least_s >= best_s:
            break
        if time.monotonic() > deadline:
            bound_s = least_s
            break
        if isinstance(entry, _Hold):
            for shape in _shapes(problem, entry):
                heappush(heap, (shape.bound_s, next(pushed), shape))
            continue
        its = costs.setdefault(entry.samples, problem.stage_costs(entry.samples))
        for least_s, candidate, pipeline in sorted(_fitting(problem, entry, its, best_s), key=lambda found: found[0]):
            if least_s >= best_s:
                break
            num_simulated += 1
            total_s = simulate_interleaved(pipeline).total_s
            if total_s < best_s and accept(candidate):
                best, best_s = candidate, total_s
    return FoundInterleaved(best, best_s, min(bound_s, best_s), num_simulated)


def _holds(problem: Problem) -> Iterator[_Hold]:
    """Every way of holding a stage, with what all devices of its kind could do at best."""
    for samples in batch_sizes(problem):
        relaxed = problem.stage_costs(samples, relaxed=True)
        for side in sides(problem, samples):
            if problem.choices.micro_batch_size in (None, samples // side.degrees.dp):
                all_stages = problem.machine.groups[side.group].count // side.degrees.size
                work = Work(0, problem.work.shape.layers, embedding=False, head=False)
                bound_s = relaxed.num_micro_batches * relaxed.chunk(side, work, 0).time_s / max(1, all_stages)
                yield _Hold(bound_s, relaxed, side)


def _shapes(problem: Problem, hold: _Hold) -> Iterator[_Shape]:
    """All numbers of stages and chunks over which weights and optimizer state could have room."""
    relaxed, side, num_layers = hold.relaxed, hold.side, problem.work.shape.layers
    least = relaxed.chunk(side, Work(0, num_layers, embedding=False, head=False), 0).memory
    room = problem.machine.groups[side.group].memory_bytes - least.context
    for num_stages in _numbers_of_stages(problem, relaxed.samples, side):
        if least.weights + least.gradients + least.optimizer > num_stages * room:
            continue
        for num_chunks in _numbers_of_chunks(problem, num_stages):
            bound_s = _bound_s(relaxed, side, num_layers, num_stages, num_chunks)
            yield _Shape(max(hold.bound_s, bound_s), relaxed.samples, side, num_stages, num_chunks)


def _numbers_of_stages(problem: Problem, samples: int, side: Side) -> Iterator[int]:
    """The schedule takes micro-batches in groups of as many as there are stages."""
    group, choices = problem.machine.groups[side.group], problem.choices
    kept = [its.pp for its in choices.kept]
    if kept and [(its.chip, its.tp, its.cp, its.dp) for its in choices.kept] != [
        (group.chip, side.degrees.tp, side.degrees.cp, side.degrees.dp)
    ]:
        return
    for num in range(2, min(group.count // side.degrees.size, problem.work.shape.layers // 2 + 1) + 1):
        is_wanted = choices.num_stages in (None, num) and (not kept or num in kept)
        if is_wanted and problem.work.batch_unit % (samples * num) == 0:
            yield num


def _numbers_of_chunks(problem: Problem, num_stages: int) -> Iterator[int]:
    choices, num_layers = problem.choices, problem.work.shape.layers
    for num in range(2, (num_layers + 2) // num_stages + 1):
        if choices.virtual_stages not in (None, num):
            continue
        if choices.layers_per_chunk is None or num * num_stages * choices.layers_per_chunk == num_layers:
            yield num


def _bound_s(relaxed: StageCosts, side: Side, num_layers: int, num_stages: int, num_chunks: int) -> float:
    """No split of a shape is faster.

    Some stage has its share of the work. And stage s waits for the first chunks of those before it, each about
    1/v of its stage: then max_s (m T_s + sum over j < s of T_j / v) is least when all are alike.
    """
    m = relaxed.num_micro_batches
    layer_s = relaxed.chunk(side, Work(0, 1, embedding=False, head=False), 0).time_s
    ends_s = relaxed.chunk(side, Work(0, 0, embedding=True, head=True), 0).time_s
    work_s = num_layers * layer_s + ends_s
    share = 1 / (m * num_chunks)
    # A chunk has at least a v-th of its stage's layers, less what the rounding takes.
    rounding_s = (num_stages - 1) * layer_s * (num_chunks - 1) / num_chunks
    waiting_s = m * work_s * share / (1 - (1 - share) ** num_stages) - rounding_s
    return max(m * work_s / num_stages, m * -(-(num_layers) // num_stages) * layer_s, waiting_s)


def _fitting(problem: Problem, shape: _Shape, costs: StageCosts,
             below_s: float) -> Iterator[tuple[float, Candidate, Interleaved]]:  # fmt: skip
    """Splits of a shape that have room in memory and could be faster, with their bounds."""
    for split in _splits(problem, shape, costs, below_s):
        stages = chunked_stages(shape.side, split, shape.num_stages)
        candidate = Candidate(shape.samples, stages, ())
        found = cost_stages(candidate, costs)
        if not all(costs.fits(shape.side, stage) for stage in found):
            continue
        pipeline = pipeline_of(candidate, costs, found)
        assert isinstance(pipeline, Interleaved)
        least_s = interleaved_bound_s(pipeline)
        if least_s < below_s:
            yield least_s, candidate, pipeline


def _splits(problem: Problem, shape: _Shape, costs: StageCosts, below_s: float) -> Iterator[tuple[int, ...]]:
    num_layers, num_chunks = problem.work.shape.layers, shape.num_chunks
    per_chunk = problem.choices.layers_per_chunk
    if per_chunk is not None:
        yield (per_chunk,) * (shape.num_stages * num_chunks)
        return
    parts = costs.parts(shape.side).kinds
    layer_s = min(sum(parts[kind][:2]) for kind in dict.fromkeys(costs.layer_kinds))
    most = min(num_layers, int(below_s / (costs.num_micro_batches * layer_s)) if below_s < float("inf") else num_layers)
    for first in range(num_chunks - 1, most + 1):
        for last in range(num_chunks - 1, most + 1):
            rest = num_layers - first - last
            if rest > most * (shape.num_stages - 2):
                continue
            if split := deal(num_layers, shape.num_stages, num_chunks, first, last):
                yield split
