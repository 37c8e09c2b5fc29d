from __future__ import annotations

from io import StringIO

from rich.console import Console

from flagvega.report.searching import SearchView


def test_a_terminal_shows_the_best_layout_so_far_and_elsewhere_nothing_is_said() -> None:
    shown, quiet = StringIO(), StringIO()
    for file, is_terminal in ((shown, True), (quiet, False)):
        with SearchView(Console(file=file, force_terminal=is_terminal, width=100)) as view:
            assert "none yet" in view.line().plain
            view.better(2.0)
            view.better(1.5)
            assert view.line().plain.endswith("best so far 1.5 s a step, number 2")
    assert "looking for a layout" in shown.getvalue()
    assert quiet.getvalue() == ""
