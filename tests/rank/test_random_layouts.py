"""Layouts that nobody wrote down; ``make fuzz`` draws them for hours."""

from __future__ import annotations

from random import Random

import pytest

from tests.rank.draw import draw_line
from tests.rank.gate import TOLERANCE, Gate


@pytest.mark.parametrize("seed", range(6))
def test_a_random_layout_computes_what_one_process_computes(gate: Gate, seed: int) -> None:
    line = draw_line(Random(seed))
    assert gate.deviation(line) < TOLERANCE, line


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 160))
def test_many_random_layouts_compute_what_one_process_computes(gate: Gate, seed: int) -> None:
    line = draw_line(Random(seed))
    assert gate.deviation(line) < TOLERANCE, line
