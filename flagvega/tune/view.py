"""What a user sees of a search: lines or a live table meanwhile, a summary and a page at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from flagvega.report.planning import seconds
from flagvega.report.progress import duration
from flagvega.report.tuning import TrialRow, tuning_page
from flagvega.report.watched import Watched
from flagvega.tune.search import Guided
from flagvega.tune.study import Trial, words
from flagvega.tune.tuner import Progress, Tuner

SHOWN = 12
"""Trials in the live table."""


class View(Watched):
    """A live table on a terminal, a line a trial elsewhere."""

    def __init__(self, console: Console, tuner: Tuner) -> None:
        self._console, self._tuner = console, tuner
        super().__init__(console, self._render, per_second=2)
        self._told = len(tuner.trials)

    def update(self, progress: Progress) -> None:
        """Something has changed."""
        if self.is_shown:
            return
        trials = self._tuner.trials
        for trial in trials[self._told :]:
            self._console.print(Text(trial_line(trial, self._tuner.best, self._tuner.unit)), soft_wrap=True)
        self._told = len(trials)

    def _render(self) -> RenderableType:
        progress, best = self._tuner.progress, self._tuner.best
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for name in ("trial", self._tuner.unit, "expected", "outcome", "configuration"):
            table.add_column(name, overflow="fold")
        for trial in self._tuner.trials[-SHOWN:]:
            style = "bold green" if best is not None and trial.number == best.number else ""
            table.add_row(
                str(trial.number), seconds(trial.time_s) if trial.time_s else "-",
                seconds(trial.corrected_s) if trial.predicted_s and trial.corrected_s else "-",
                trial.status, words(trial.values), style=style,
            )  # fmt: skip
        for number, seen in list(progress.running.items()):
            expected = seconds(seen.corrected_s) if seen.predicted_s else "-"
            table.add_row(str(number), "running", expected, "", words(seen.point.values), style="dim")
        return Group(table, Text(self._status(progress, best)))

    def _status(self, progress: Progress, best: Trial | None) -> str:
        parts = [f"{len(self._tuner.trials)} trials, {progress.pool.num_alive:,} candidates left"]
        if best is not None:
            parts.append(f"best {seconds(best.time_s or 0.0)} a {self._tuner.unit} (trial {best.number})")
        parts.append(f"{duration(progress.spent_s)} so far")
        if left := time_left_s(self._tuner):
            parts.append(f"at most {duration(left)} left")
        return ", ".join(parts)


def time_left_s(tuner: Tuner) -> float | None:
    """Seconds until the budget ends the search at the latest, as far as one can tell."""
    budget, progress = tuner.progress.budget, tuner.progress
    found = []
    if budget.max_time_s is not None:
        found.append(budget.max_time_s - progress.spent_s)
    took = [trial.took_s for trial in tuner.trials if trial.took_s]
    if budget.max_trials is not None and took:
        found.append((budget.max_trials - len(tuner.trials)) * sum(took) / len(took))
    return max(0.0, min(found)) if found else None


def trial_line(trial: Trial, best: Trial | None, unit: str) -> str:
    """A trial in one line."""
    mark = ", the best so far" if best is not None and best.number == trial.number else ""
    if trial.time_s is None:
        return f"trial {trial.number}: {trial.status}: {trial.reason} ({words(trial.values)})"
    expected = f", expected {seconds(trial.corrected_s)}" if trial.predicted_s and trial.corrected_s else ""
    slow = " (clearly slower)" if trial.status == "worse" else ""
    return f"trial {trial.number}: {seconds(trial.time_s)} a {unit}{slow}{expected}{mark} ({words(trial.values)})"


def summary_lines(tuner: Tuner, best: Trial, paths: Mapping[str, Path]) -> tuple[str, ...]:
    """What came out."""
    progress = tuner.progress
    dead = [trial for trial in tuner.trials if not trial.is_good]
    lines = [
        f"{len(tuner.trials)} trials of {progress.pool.num_legal:,} candidates in {duration(progress.spent_s)}: "
        f"{progress.ended}",
        f"best: trial {best.number}, {speed(best, tuner.unit)}",
        *(f"  {name}: {value}" for name, value in best.values.items()),
    ]
    lines += (
        ["without a time: " + ", ".join(f"trial {trial.number} ({trial.status})" for trial in dead)] if dead else []
    )
    lines += [f"  {name:<7} {path}" for name, path in paths.items()]
    return tuple(lines)


def tune_page(name: str, tuner: Tuner, counts: Sequence[tuple[str, str, str]], best_yaml: str) -> str:
    """The report; ``counts`` are (rule, how many candidates are left after it, an example of what went)."""
    progress, best = tuner.progress, tuner.best
    rows = [
        TrialRow(
            trial.number, trial.status, trial.reason, trial.values, trial.time_s, trial.half_width_s,
            trial.tokens_per_s, trial.predicted_s, trial.corrected_s, trial.measured_memory_share or trial.memory_share,
            best is not None and trial.number == best.number, trial.facts,
        )
        for trial in tuner.trials
    ]  # fmt: skip
    facts = [f"{len(rows)} trials of {progress.pool.num_legal:,} candidates: {progress.ended or 'not ended'}"]
    if best is not None:
        facts.insert(0, f"best: {speed(best, tuner.unit)}: {words(best.values)}")
    facts.append(time.strftime("written %F %T"))
    pruned = []
    if isinstance(progress.order, Guided):
        pruned = [(words(point.values), why) for point, why in progress.order.pruned]
    pruned += [(words(point.values), why) for point, why in progress.refused]
    return tuning_page(f"tuning {name}", facts, rows, counts, pruned[:200], best_yaml, tuner.unit)


def speed(trial: Trial, unit: str) -> str:
    """What a trial measured, in words."""
    rate = f", {trial.tokens_per_s:,.0f} tokens/s" if trial.tokens_per_s else ""
    return f"{seconds(trial.time_s or 0.0)} a {unit}{rate}"
