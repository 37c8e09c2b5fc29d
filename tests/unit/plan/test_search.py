"""The search against an enumerator of every plan: the same least time, to the last bit that matters."""

from __future__ import annotations

from collections import Counter

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
