"""The tuner on grids of a real vLLM that were measured once."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagvega.serve.tuning.model import GuidedByTraffic
from flagvega.serve.tuning.score import least_s
from flagvega.tune.search import NoHistory
from tools.bench.serve_tune import CASES, NEAR, SHARE, Case, open_grid


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_best_is_found_in_a_third_of_the_trials(case: Case, tmp_path: Path) -> None:
    grid = open_grid(case, tmp_path)
    least = least_s(grid.question.traffic)
    assert grid.needed(GuidedByTraffic(grid.pool(), NoHistory(), least_s=least)) <= len(grid.outcomes) * SHARE
    _, ratio = grid.search(lambda pool: GuidedByTraffic(pool, NoHistory(), least_s=least))
    assert ratio <= NEAR
