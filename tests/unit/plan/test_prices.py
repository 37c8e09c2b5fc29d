"""Prices of devices bound what the table finds, and never exceed it."""

from __future__ import annotations

from math import inf

from flagvega.plan.batch import Batch
from flagvega.plan.prices import Prices
from flagvega.plan.space import batch_sizes
from flagvega.plan.table import Table
from tests.unit.plan import instances

SHARES = (1.0, 2.0, 4.0, 8.0)


def test_no_bound_by_prices_exceeds_the_least_round_of_the_table() -> None:
    compared = near = 0
    for seed in range(25):
        problem = instances.draw(seed)
        for batch in (Batch(problem, samples) for samples in batch_sizes(problem)):
            if not batch.is_possible:
                continue
            prices = Prices(batch)
            for share in SHARES:
                cap_s, limit_s = share * batch.fluid_s, 12 * batch.fluid_s
                least_s = Table(batch, cap_s, limit_s, limit_s, lambda: None).least_s
                bound_s = prices.least_round_s(cap_s, limit_s, limit_s, lambda: None)
                assert bound_s <= least_s * (1 + 1e-12), (seed, batch.samples, share)
                compared += least_s < inf
                near += least_s < inf and bound_s > least_s / 2
    assert compared > 100
    assert near > compared / 2
