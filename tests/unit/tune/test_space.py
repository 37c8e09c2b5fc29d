from __future__ import annotations

import pytest

from flagvega.tune.space import read_values


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ("auto", None),
        ([1, 2, 2], (1, 2)),
        (4, (4,)),
        ({"from": 2, "to": 5}, (2, 3, 4, 5)),
        ({"from": 1, "to": 9, "step": 4}, (1, 5, 9)),
        ({"from": 1, "to": 10, "factor": 2}, (1, 2, 4, 8)),
        ([[1, 5], [2, 4]], ((1, 5), (2, 4))),
    ],
)
def test_a_dimension_is_a_list_a_range_auto_or_one_value(given, values):
    assert read_values(given) == values
