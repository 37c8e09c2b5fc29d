"""The routing bench judges what it measured, and asks every router the same."""

from __future__ import annotations

from typing import Any

import pytest

from tools.bench.serve_load import draw
from tools.bench.serve_routing import judge


def row(policy: str, goodput: float, load: float = 1.1, **more: Any) -> dict[str, Any]:
    return {
        "chips": "emu-l:24", "load": load, "policy": policy, "goodput": goodput, "capacity": 100.0,
        "asked_tokens_per_s": 100.0 * load, "cpu_share": 0.2, "late_share": 0.0, "sent_late_s": 0.0, **more,
    }  # fmt: skip


GOOD = [
    row("flagvega:0.75", 97),
    row("round_robin:1", 40),
    row("flagvega:0.75", 88, 0.9),
    row("round_robin:1", 40, 0.9),
]


def test_enough_is_0_95_of_what_could_be_served_and_more_than_each_other_policy(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert judge(GOOD) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "least: 0.970 (emu-l:24 at 1.1)"
    assert judge([row("flagvega:0.75", 94), row("round_robin:1", 40)]) == 1
    assert judge([row("flagvega:0.75", 96), row("round_robin:1", 97)]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("FAILED: least: 0.960")


def test_who_is_not_told_the_capacities_need_only_be_ahead() -> None:
    assert judge([*GOOD, row("flagvega-untold:0.75", 60)]) == 0
    assert judge([*GOOD, row("flagvega-untold:0.75", 40)]) == 1
    assert judge([row("flagvega-untold:0.75", 99), row("round_robin:1", 40)]) == 1


@pytest.mark.parametrize("why", [{"cpu_share": 0.71}, {"late_share": 0.03}, {"sent_late_s": 0.6}])
def test_a_run_in_which_the_host_did_not_keep_up_does_not_count(why: dict[str, float]) -> None:
    assert judge([*GOOD, row("flagvega:0.75", 10, **why), row("round_robin:1", 99, **why)]) == 0
    assert judge([row("flagvega:0.75", 99, **why)]) == 1


def test_routers_are_asked_at_the_same_times_for_as_much_but_nothing_that_is_in_a_cache() -> None:
    ours, theirs = draw(1, "ours", 10, 20), draw(1, "theirs", 10, 20)
    assert [(each.at_s, each.num_tokens) for each in ours] == [(each.at_s, each.num_tokens) for each in theirs]
    assert [len(each.prompt.split()) for each in ours] == [len(each.prompt.split()) for each in theirs]
    assert not {each.prompt for each in ours} & {each.prompt for each in theirs}
