"""The tuner on grids of a real vLLM that were measured once."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest

from flagvega.serve.tuning.model import GuidedByTraffic
from flagvega.serve.tuning.score import least_s
from flagvega.tune.search import NoHistory
from tools.bench.serve_tune import CASES, NEAR, SHARE, Case, errors, open_grid


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_best_is_found_in_a_third_of_the_trials(case: Case, tmp_path: Path) -> None:
    grid = open_grid(case, tmp_path)
    least = least_s(grid.question.traffic)
    assert grid.needed(GuidedByTraffic(grid.pool(), NoHistory(), least_s=least)) <= len(grid.outcomes) * SHARE
    _, ratio = grid.search(lambda pool: GuidedByTraffic(pool, NoHistory(), least_s=least))
    assert ratio <= NEAR


def test_prompts_read_in_several_steps_do_not_spoil_what_a_trial_predicts(tmp_path: Path) -> None:
    off = errors(open_grid(next(case for case in CASES if case.name == "large-long-prompts"), tmp_path))
    assert median(off) < 0.02
    assert sum(each > 0.25 for each in off) <= 2
