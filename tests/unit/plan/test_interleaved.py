from __future__ import annotations

import random
import time
from dataclasses import replace
from itertools import pairwise
from math import inf
from types import SimpleNamespace

import pytest

from flagvega.plan.analytic import AnalyticCosts
from flagvega.plan.chunks import chunked_stages, cost_stages, deal, pipeline_of
from flagvega.plan.interleaved import (
    Interleaved,
    held_chunks,
    interleaved_bound_s,
    num_warm_up,
    order,
    program,
    simulate_interleaved,
)
from flagvega.plan.interleaved_search import _holds, _shapes, _splits, search_interleaved
from flagvega.plan.machine import Machine
from flagvega.plan.space import Candidate, Problem
from tests.unit.plan.instances import draw


def pipeline(forward: list[list[float]], backward: list[list[float]], transfer_s: float, m: int) -> Interleaved:
    num = len(forward)
    return Interleaved(
        tuple(map(sum, forward)),
        tuple(map(sum, backward)),
        (transfer_s,) * (num - 1),
        (0,) * num,
        m,
        (0.0,) * num,
        (0.0,) * num,
        chunk_forward=tuple(map(tuple, forward)),
        chunk_backward=tuple(map(tuple, backward)),
        wrap_s=transfer_s,
    )


@pytest.mark.parametrize(("num", "chunks", "m"), [(2, 2, 4), (2, 3, 2), (4, 2, 8), (4, 4, 16), (3, 5, 9), (8, 2, 8)])
def test_passes_come_in_the_order_of_megatron_core(num: int, chunks: int, m: int) -> None:
    schedules = pytest.importorskip("megatron.core.pipeline_parallel.schedules")
    table = schedules.get_schedule_table(m, chunks, num)
    assert order(num, chunks, m) == table
    for stage in range(num):
        group = SimpleNamespace(size=lambda: num, rank=lambda stage=stage: stage)
        transport = SimpleNamespace(pp_group=group, virtual_pipeline_model_parallel_size=chunks)
        total, _, warm_up, left = schedules.get_pp_rank_microbatches(m, chunks, num, p2p_communicator=transport)
        assert num_warm_up(stage, num, chunks, m) == warm_up
        forward = [("F", chunk * num + stage, i) for i, chunk in table]
        backward = [("B", (chunks - 1 - chunk) * num + stage, i) for i, chunk in table]
        wanted = forward[:warm_up]
        for k in range(left):
            wanted += [forward[warm_up + k], backward[k]]
        wanted += backward[left:total]
        passes = [what for kind, what in program(stage, num, chunks, m) if kind in "FB"]
        assert passes == wanted


def test_a_small_step_takes_what_it_takes_by_hand() -> None:
    # Two stages x two chunks, two micro-batches; forwards 1 s, backwards 2 s, transfers free.
    # stage 0: F0 F1 at 0-2, then chunk 1: 2-4; stage 1: 1-3 and 3-5, backwards of its chunk 1 from 4 on.
    #   stage 1: F(0,0) 1-2, F(0,1) 2-3, F(1,0) 3-4, B(1,0) 4-6 would be 1F1B; warm-up is 2 forwards, so
    #   F(1,0) 3-4, B(1,0) 4-6, F(1,1) 6-7, B(1,1) 7-9.
    # stage 0 has all four forwards first: 0-4. B(1,0) 6-8, B(1,1) 9-11.
    # stage 1: B(0,0) 9-11 (after 8), B(0,1) 11-13; stage 0: B(0,0) 11-13, B(0,1) 13-15.
    step = simulate_interleaved(pipeline([[1, 1], [1, 1]], [[2, 2], [2, 2]], 0.0, 2), with_events=True)
    seen = {(stage, kind, chunk, i): (begin, end) for (stage, kind, i, begin, end), chunk
            in zip(step.events, step.chunks, strict=True)}  # fmt: skip
    assert seen[1, "F", 1, 1] == (6, 7)
    assert seen[0, "B", 1, 1] == (9, 11)
    assert seen[1, "B", 0, 0] == (9, 11)
    assert seen[0, "B", 0, 1] == (13, 15)
    assert step.total_s == 15


def test_transfers_delay_passes_that_wait_for_them_by_hand() -> None:
    # As above with 0.5 s over every boundary. Warm-up passes also wait until what they sent is there.
    # stage 0: F(0,0) 0-1, message until 1.5 (stage 1 is there for it), F(0,1) 1.5-2.5, message until 3.
    # stage 1: F(0,0) 1.5-2.5; its message back meets that of F(0,1), both are over at 3; F(0,1) 3-4.
    step = simulate_interleaved(pipeline([[1, 1], [1, 1]], [[2, 2], [2, 2]], 0.5, 2), with_events=True)
    seen = {(stage, kind, chunk, i): (begin, end) for (stage, kind, i, begin, end), chunk
            in zip(step.events, step.chunks, strict=True)}  # fmt: skip
    assert seen[1, "F", 0, 0] == (1.5, 2.5)
    assert seen[0, "F", 0, 1] == (1.5, 2.5)
    assert seen[0, "F", 1, 0] == (3.0, 4.0)
    assert seen[1, "F", 0, 1] == (3.0, 4.0)


@pytest.mark.parametrize(("num", "chunks", "m"), [(2, 2, 4), (4, 2, 8), (4, 4, 16), (8, 2, 32), (3, 5, 9)])
def test_the_bubble_of_equal_stages_is_a_vth_of_the_plain_one(num: int, chunks: int, m: int) -> None:
    times = [[1.0] * chunks] * num, [[2.0] * chunks] * num
    step = pipeline(*times, 0.0, m)
    busy = 3.0 * chunks * m
    assert simulate_interleaved(step).total_s == pytest.approx(busy * (1 + (num - 1) / (chunks * m)))
    assert interleaved_bound_s(step) == pytest.approx(simulate_interleaved(step).total_s)


@pytest.mark.parametrize("seed", range(60))
def test_no_step_is_faster_than_its_bound_and_every_pass_follows_its_causes(seed: int) -> None:
    rng = random.Random(seed)
    num, chunks = rng.randint(2, 5), rng.randint(2, 4)
    m = num * rng.randint(1, 4)
    times = [[[rng.uniform(0.1, 2) for _ in range(chunks)] for _ in range(num)] for _ in range(2)]
    step = pipeline(*times, rng.choice([0.0, 0.3, 2.0]), m)
    found = simulate_interleaved(step, with_events=True)
    assert found.total_s >= interleaved_bound_s(step) - 1e-9
    assert len(found.events) == 2 * num * chunks * m
    end = {(kind, chunk * num + stage, i): (begin, end) for (stage, kind, i, begin, end), chunk
           in zip(found.events, found.chunks, strict=True)}  # fmt: skip
    for i in range(m):
        for part, after in pairwise(range(num * chunks)):
            assert end["F", after, i][0] >= end["F", part, i][1] + step.wrap_s - 1e-9
            assert end["B", part, i][0] >= end["B", after, i][1] + step.wrap_s - 1e-9


def test_a_stage_holds_the_most_right_after_its_warm_up() -> None:
    for stage in range(4):
        most = max(sum(counts) for counts in held_chunks(stage, 4, 2, 16))
        assert most == num_warm_up(stage, 4, 2, 16) + 1


def test_layers_are_dealt_as_evenly_as_the_ends_allow() -> None:
    assert deal(8, 2, 2, 4, 4) == (2, 2, 2, 2)
    assert deal(7, 2, 2, 3, 4) == (1, 2, 2, 2)
    assert deal(10, 3, 2, 3, 3) == (1, 2, 2, 2, 2, 1)
    assert deal(4, 2, 2, 1, 3) == (0, 2, 1, 1)
    assert deal(4, 2, 3, 2, 2) == (0, 1, 1, 1, 1, 0)
    assert deal(3, 3, 2, 1, 1) is None


def alone(seed: int) -> Problem:
    """A problem with one kind of chip."""
    problem = draw(seed, max_layers=7, max_devices=5)
    machine = Machine((replace(problem.machine.groups[0], per_node=(4,)),))
    costs = AnalyticCosts(problem.work, machine, problem.choices.distributed_optimizer)
    return replace(problem, machine=machine, costs=costs)


@pytest.mark.parametrize("seed", range(25))
def test_the_search_finds_the_best_of_all_that_it_could_enumerate(seed: int) -> None:
    problem = alone(seed)
    found = search_interleaved(problem, lambda candidate: True, inf, time.monotonic() + 60)
    best_s, has_any = inf, False
    for shape in (shape for hold in _holds(problem) for shape in _shapes(problem, hold)):
        costs = problem.stage_costs(shape.samples)
        for split in _splits(problem, shape, costs, inf):
            candidate = Candidate(shape.samples, chunked_stages(shape.side, split, shape.num_stages), ())
            stages = cost_stages(candidate, costs)
            step = pipeline_of(candidate, costs, stages)
            assert isinstance(step, Interleaved)
            total_s = simulate_interleaved(step).total_s
            assert total_s >= shape.bound_s * (1 - 1e-9)
            if all(costs.fits(shape.side, stage) for stage in stages):
                best_s, has_any = min(best_s, total_s), True
    assert (found.candidate is not None) == has_any
    assert found.total_s == best_s == found.bound_s


def test_only_what_is_faster_than_what_is_known_is_found() -> None:
    problem = alone(3)
    best_s = search_interleaved(problem, lambda candidate: True, inf, time.monotonic() + 60).total_s
    assert best_s < inf
    again = search_interleaved(problem, lambda candidate: True, best_s, time.monotonic() + 60)
    assert again.candidate is None
    assert again.bound_s == best_s
