"""The search against an enumerator of every plan: the same least time, to the last bit that matters."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from flagvega.plan.analytic import AnalyticCosts
from flagvega.plan.search import search
from tests.unit.plan import brute, instances

SEEDS = range(20)


def test_no_plan_of_a_small_problem_is_faster_than_the_one_found() -> None:
    sizes = Counter[int]()
    for seed in SEEDS:
        problem = instances.draw(seed, max_layers=5, max_devices=2)
        least_s, number = brute.best(problem)
        sizes[len(str(number))] += 1
        found = search(problem, lambda candidate: True, time_s=60)
        if found is None:
            assert least_s == float("inf"), seed
            continue
        assert abs(found.total_s / least_s - 1) < 1e-12, seed
        assert found.gap == 0, seed
    assert sum(sizes[digits] for digits in (4, 5, 6)) > len(SEEDS) // 4, sizes


def test_a_refused_plan_gives_way_to_the_next_best() -> None:
    problem = instances.draw(2, max_layers=4, max_devices=2)
    best = search(problem, lambda candidate: True, time_s=20)
    assert best is not None
    second = search(problem, lambda candidate: candidate != best.candidate, time_s=20)
    assert second is not None
    assert second.total_s >= best.total_s
    assert second.candidate != best.candidate


def test_a_larger_cluster_gets_a_plan_that_fits_within_the_time() -> None:
    small = instances.draw(2)
    groups = tuple(replace(group, per_node=(8, 8), memory_bytes=10**12) for group in small.machine.groups)
    problem = replace(small, machine=replace(small.machine, groups=groups))
    problem = replace(problem, costs=AnalyticCosts(problem.work, problem.machine, True))
    found = search(problem, lambda candidate: True, time_s=1)
    assert found is not None
    assert found.bound_s <= found.total_s < float("inf")
    used = Counter[int]()
    for side, _ in found.candidate.stages:
        used[side.group] += side.degrees.size
    assert all(count <= 16 for count in used.values())
