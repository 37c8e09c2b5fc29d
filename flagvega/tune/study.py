"""The records of a search: one line a trial, appended and synced: what was measured is never lost or doubled."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from flagvega.records import append_json_line, read_json_lines, write_text

SCHEMA = 1
Status = Literal["ok", "worse", "oom", "nan", "hang", "crash", "refused", "invalid_timing"]
GOOD: tuple[Status, ...] = ("ok", "worse")
"""Trials that measured a time."""


@dataclass(frozen=True)
class Outcome:
    """How a trial ended."""

    status: Status
    reason: str = ""
    time_s: float | None = None
    """What the search makes small: the median seconds of a step."""
    half_width_s: float | None = None
    """Of its confidence interval."""
    steps: tuple[float, ...] = ()
    tokens_per_s: float | None = None
    measured_memory_share: float | None = None
    """Of the fullest device, as its chip counted."""
    busy: tuple[float, ...] = ()
    """Share of the step in which each part computes."""
    loss: float | None = None
    rank: int | None = None
    """That ran out of memory."""
    took_s: float = 0.0
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else was measured, by name: columns of the table."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What only the model learns from."""

    @property
    def is_good(self) -> bool:
        """Whether it measured a time."""
        return self.status in GOOD and self.time_s is not None


@dataclass(frozen=True, kw_only=True)
class Trial(Outcome):
    """What is known of one trial; a line of ``trials.jsonl``."""

    number: int = 0
    key: str
    """Of the candidate and of everything beside it: no two trials have the same."""
    point: Mapping[str, Any]
    """The candidate, so that it can be built again."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """The candidate in words."""
    predicted_s: float | None = None
    """By the prediction alone."""
    corrected_s: float | None = None
    """By what was known when it was chosen."""
    memory_share: float | None = None
    """Predicted: of the fullest device."""
    started: float = 0.0
    """Unix s."""
    schema: int = SCHEMA


@dataclass
class Study:
    """The folder of a search: ``trials.jsonl``, ``trials.csv`` and a folder for each trial."""

    root: Path
    trials: list[Trial] = field(default_factory=list)
    foreign: int = 0
    """Lines of another schema, left alone."""

    @classmethod
    def open(cls, root: Path) -> Study:
        """What is there already; a line that a crash tore off is dropped."""
        root.mkdir(parents=True, exist_ok=True)
        rows = read_json_lines(root / "trials.jsonl")
        ours = [row for row in rows if row.get("schema") == SCHEMA]
        found: dict[str, Trial] = {}
        for row in ours:
            found.setdefault(row["key"], Trial(**_with_tuples(row)))
        return cls(root, list(found.values()), len(rows) - len(ours))

    def add(self, trial: Trial) -> None:
        """Record a trial for good."""
        assert trial.key not in self.keys
        append_json_line(self.root / "trials.jsonl", asdict(trial), durable=True)
        self.trials.append(trial)
        write_text(self.root / "trials.csv", _csv(self.trials))

    @property
    def keys(self) -> set[str]:
        """Of all trials."""
        return {trial.key for trial in self.trials}

    def next_number(self) -> int:
        """Of a new trial."""
        return max((trial.number for trial in self.trials), default=0) + 1

    def folder(self, number: int) -> Path:
        """Where a trial runs."""
        return self.root / "trials" / f"{number:03d}"


_TUPLES = ("steps", "busy", "notes")


def read_outcome_row(row: Mapping[str, Any]) -> Outcome:
    """From plain data."""
    return Outcome(**_with_tuples(row))


def _with_tuples(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, **{name: tuple(row[name]) for name in _TUPLES}}


def trials_of(trials: Iterable[Trial], base_key: str) -> list[Trial]:
    """Those of one question: alike in everything that no candidate changes."""
    return [trial for trial in trials if trial.key.startswith(f"{base_key}-")]


def best_of(trials: Iterable[Trial]) -> Trial | None:
    """The fastest."""
    good = [trial for trial in trials if trial.status == "ok" and trial.time_s is not None]
    return min(good, key=lambda trial: trial.time_s or 0.0, default=None)


def words(values: Mapping[str, object]) -> str:
    """The choices of a candidate, in short."""
    return ", ".join(str(value) if name == "meshes" else f"{name} {value}" for name, value in values.items())


def _csv(trials: list[Trial]) -> str:
    names = list(dict.fromkeys(name for trial in trials for name in (*trial.facts, *trial.values)))
    facts = ("number", "status", "time_s", "half_width_s", "tokens_per_s", "predicted_s", "corrected_s",
             "memory_share", "measured_memory_share", "took_s", "reason")  # fmt: skip
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*facts, *names])
    for trial in sorted(trials, key=lambda trial: (trial.time_s is None, trial.time_s or 0.0)):
        row = asdict(trial)
        more = {**trial.facts, **trial.values}
        writer.writerow([*(row[name] for name in facts), *(more.get(name, "") for name in names)])
    return text.getvalue()
