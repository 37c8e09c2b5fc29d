"""The search against an enumerator of every plan: the same least time, to the last bit that matters."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from flagvega.model.workload import Choices, KeptMesh
from flagvega.plan.analytic import AnalyticCosts
from flagvega.plan.search import Found, search, shape_of
from flagvega.plan.space import Problem
from tests.unit.plan import brute, instances

SEEDS = range(14)


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


def roomy(**pins: object) -> Problem:
    """Two devices of each of two kinds, memory for anything."""
    drawn = instances.draw(2, max_layers=5, max_devices=2)
    groups = tuple(replace(group, per_node=(2,), memory_bytes=10**12)
                   for group in drawn.machine.groups[:2])  # fmt: skip
    machine = replace(drawn.machine, groups=groups)
    choices: Choices = replace(drawn.choices, **pins)  # type: ignore[arg-type]
    return replace(drawn, machine=machine, choices=choices, costs=AnalyticCosts(drawn.work, machine, True))


def solve(problem: Problem, top_k: int = 1) -> Found:
    found = search(problem, lambda candidate: True, 30, top_k)
    assert found is not None
    return found


def test_a_given_order_of_chips_is_kept() -> None:
    for order in (("chip-0", "chip-1"), ("chip-1", "chip-0")):
        found = solve(roomy(order=order))
        runs = list(dict.fromkeys(side.group for side, _ in found.candidate.stages))
        assert runs == [int(name[-1]) for name in order if int(name[-1]) in runs]


def test_a_kept_mesh_is_in_the_plan_just_as_it_is() -> None:
    slow = max((0, 1), key=lambda i: 1 / roomy().machine.groups[i].flops_per_s)
    found = solve(roomy(kept=(KeptMesh(f"chip-{slow}", tp=1, cp=1, ep=1, etp=1, dp=1, pp=2),)))
    stages = [side.degrees for side, _ in found.candidate.stages if side.group == slow]
    assert len(stages) == 2
    assert all(degrees.size == 1 for degrees in stages)
    assert found.gap == 0


def test_tp_does_not_exceed_its_limit() -> None:
    found = solve(roomy(max_tp=1))
    assert all(side.degrees.tp == 1 for side, _ in found.candidate.stages)


def test_others_have_other_shapes_and_are_no_faster() -> None:
    found = solve(roomy(), top_k=3)
    shapes = [shape_of(candidate) for candidate, _ in found.others]
    assert len({shape_of(found.candidate), *shapes}) == 1 + len(shapes)
    assert all(total_s >= found.total_s for _, total_s in found.others)
