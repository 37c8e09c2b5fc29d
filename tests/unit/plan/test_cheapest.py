"""The cheapest plan, between the price of the fastest one and what no plan undercuts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flagvega.plan.cheapest import least_price, search_cheapest
from flagvega.plan.compare import price
from flagvega.plan.explain import look_at
from flagvega.plan.search import search
from flagvega.plan.space import Problem
from tests.unit.plan import instances


def priced(seed: int, *prices: float) -> Problem:
    drawn = instances.draw(seed, max_layers=4, max_devices=2)
    groups = tuple(
        replace(group, price_per_hour=prices[i % len(prices)], memory_bytes=10**12)
        for i, group in enumerate(drawn.machine.groups)
    )
    machine = replace(drawn.machine, groups=groups)
    return replace(drawn, machine=machine, costs=drawn.costs.on(machine), objective="cost")


@pytest.mark.parametrize("seed", range(6))
def test_the_cheapest_plan_costs_no_more_than_the_fastest_and_no_less_than_the_bound(seed: int) -> None:
    problem = priced(seed, 1.0, 5.0, 2.0)
    cheapest = search_cheapest(problem, lambda candidate: True, 20)
    fastest = search(replace(problem, objective="time"), lambda candidate: True, 20)
    assert cheapest is not None
    assert fastest is not None
    cost = price(look_at(cheapest.candidate, problem), problem)
    assert least_price(problem) / 3600 <= cost * (1 + 1e-12)
    assert cost <= price(look_at(fastest.candidate, problem), problem) * (1 + 1e-12)
    assert cheapest.gap == pytest.approx(cost * 3600 / least_price(problem) - 1)
    shapes = [tuple(side for side, _ in candidate.stages) for candidate, _ in cheapest.others]
    assert len(set(shapes)) == len(shapes)
