"""What a user watches."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flagvega.records import Lines, append_json_line
from flagvega.report.live import LiveView
from flagvega.report.progress import Progress, duration


def row(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "loss": 2.0, "grad_norm": 1.0, "lr": 1e-4, "tokens": 100, "iter_time_s": 0.5} | more


def test_rates_shares_and_time_left_follow_from_the_metrics() -> None:
    progress = Progress({"total_steps": 10, "flops_per_token": 1e6, "peak_flops": 1e9})
    for step in (1, 2, 3, 4):
        progress.add(row(step, busy=[0.5, 0.25], peak_bytes=[3 * 2**30, 2**29]))
    assert progress.tokens_per_s == 200
    assert progress.mfu == pytest.approx(0.2)
    assert progress.left_s == pytest.approx(3.0)
    fields = progress.fields()
    assert fields["step"] == "4/10"
    assert fields["busy"] == "50% 25%"
    assert fields["peak GiB"] == "3 0.5"
    assert fields["left"] == "0:00:03"


def test_what_is_unknown_is_not_shown() -> None:
    progress = Progress({"peak_flops": None})
    assert progress.fields() == {}
    progress.add(row(1))
    assert set(progress.fields()) == {"step", "loss", "grad norm", "lr", "tokens/s"}
    progress.add(row(2, grad_norm=None))
    assert progress.fields()["grad norm"] == "-"


def test_without_a_terminal_lines_are_plain_and_the_last_step_is_never_left_out(tmp_path: Path) -> None:
    path, stream = tmp_path / "metrics.jsonl", io.StringIO()
    with LiveView(Console(file=stream), Lines(path), {"total_steps": 3}) as view:
        for step in (1, 2, 3):
            append_json_line(path, row(step, loss=float(step)))
            view.update()
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("step 1/3  loss 1.0000  grad norm 1.000  lr 1.00e-04  tokens/s 200")
    assert lines[-1].startswith("step 3/3")
    assert "\x1b" not in stream.getvalue()


def test_a_terminal_shows_a_live_table(tmp_path: Path) -> None:
    path, stream = tmp_path / "metrics.jsonl", io.StringIO()
    console = Console(file=stream, force_terminal=True, no_color=True, width=120)
    with LiveView(console, Lines(path), {"total_steps": 3}) as view:
        append_json_line(path, row(1, loss=1.25))
        view.update()
    assert "1.2500" in stream.getvalue()


def test_durations_are_written_as_clocks_do() -> None:
    assert duration(3723.4) == "1:02:03"
