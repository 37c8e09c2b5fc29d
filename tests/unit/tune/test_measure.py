from __future__ import annotations

import pytest

from flagvega.tune.measure import Limits, judge, read_steps

LIMITS = Limits(warmup_iters=2, train_iters=4, max_iters=8, confidence=0.02, max_time_s=60.0)


def rows(*times: float, loss: float = 2.0) -> list[dict]:
    return [
        {"step": i + 1, "loss": loss, "iter_time_s": time_s, "tokens_per_s": 100 / time_s, "busy": [0.5, 0.9]}
        for i, time_s in enumerate(times)
    ]


@pytest.mark.parametrize(
    ("times", "best_s", "word"),
    [
        ((9, 9, 1.0, 1.0, 1.0), None, "more"),
        ((9, 9, 1.0, 1.001, 1.0, 1.002), None, "enough"),
        ((9, 9, 1.0, 1.5, 1.0, 2.0), None, "more"),
        ((9, 9, 1.0, 1.5, 1.0, 2.0, 1.1, 1.7, 0.8, 1.9), None, "enough"),
        ((9, 9, 1.0, 1.0, 1.001), 0.5, "worse"),
        ((9, 9, 1.0, 1.0), 0.5, "more"),
        ((9, 9, 1.0, 1.0, 1.001), 0.95, "more"),
        ((9, 9, 1.0, 1.0, 7.0, 1.0, 1.001), None, "enough"),
    ],
)
def test_a_trial_goes_on_until_it_is_certain_or_clearly_worse(times, best_s, word):
    limits = Limits(**{**vars(LIMITS), "best_s": best_s})

    assert judge(read_steps(rows(*times), 2), limits) == word


def test_a_loss_that_is_no_number_ends_a_trial_at_once():
    measured = read_steps(rows(1.0, loss=float("nan")), 2)

    assert judge(measured, LIMITS) == "nan"


def test_a_hiccup_of_the_host_does_not_count():
    measured = read_steps(rows(9, 9, 1.0, 1.01, 30.0, 0.99, 1.0), 2)

    assert measured.typical_s == 1.0
    assert measured.half_width_s < 0.05
    assert measured.busy == (0.5, 0.9)
