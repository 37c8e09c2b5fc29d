from __future__ import annotations

from dataclasses import replace

from flagvega.report.tuning import TrialRow, effects, pareto, tuning_page

GOOD = TrialRow(1, "ok", "", {"micro_batch_size": 1, "layers": "4-4"}, 1.0, 0.01, 1000.0, 3.0, 1.1, 0.5)
ROWS = [
    GOOD,
    replace(GOOD, number=2, values={"micro_batch_size": 2, "layers": "4-4"}, time_s=0.8, tokens_per_s=1250.0,
            memory_share=0.7, is_best=True),
    replace(GOOD, number=3, status="worse", reason="clearly slower than the best", time_s=1.5, tokens_per_s=666.0,
            memory_share=0.6),
    replace(GOOD, number=4, status="oom", reason="rank 2 <emu-l> ran out", time_s=None, tokens_per_s=None),
]  # fmt: skip


def test_the_page_needs_nothing_else_and_shows_every_trial_with_its_reason():
    page = tuning_page("tuning toy", ["best: 0.8 s"], ROWS, [("batch", "31", "dp 2")], [("a", "b")], "plan: best.json")

    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "rank 2 &lt;emu-l&gt; ran out" in page
    assert "plan: best.json" in page
    assert page.count("<circle") == 3 * 3
    assert "Alike in all: layers 4-4" in page


def test_the_front_has_what_no_other_beats_in_memory_and_throughput():
    assert [row.number for row in pareto(ROWS[:3])] == [1, 2]


def test_a_dimension_with_one_value_has_no_effect():
    found = effects(ROWS[:3])

    assert {effect.dimension for effect in found} == {"micro_batch_size"}
    assert [(effect.value, effect.num_trials, effect.best_s) for effect in found] == [("2", 1, 0.8), ("1", 2, 1.0)]


def test_a_search_in_which_nothing_ran_has_a_page_too():
    page = tuning_page("tuning toy", [], [ROWS[3]], [], [], "")

    assert "oom" in page
