"""The search itself: choose, try, record, learn; and say why it ended."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from flagvega.errors import ConfigError, Fault, NoPlanError
from flagvega.tune.candidates import Point, Seen
from flagvega.tune.pool import Pool
from flagvega.tune.search import Guided, Order, replay
from flagvega.tune.study import Outcome, Study, Trial, best_of, trials_of

MIN_GAIN = 0.001
"""A trial is better than the best when it is so by this share."""

ALL_TRIED = "all candidates have been tried"
ATTEMPTS = 2
"""At a trial whose timings do not count."""

Run = Callable[[Path, float | None], Outcome]
"""Runs a trial in a folder; given is the best one's time so far. ConfigError when it is refused."""


@dataclass(frozen=True)
class Budget:
    """How much may be tried."""

    max_trials: int | None = None
    max_time_s: float | None = None
    patience: int | None = None
    min_trials: int = 1
    """Before the model is believed that none that is left is faster."""


@dataclass(frozen=True)
class Begun:
    """A trial that runs."""

    number: int
    seen: Seen
    run: Run
    best_s: float | None
    """Of the best trial when it began."""
    started: float
    """Unix s."""


@dataclass
class Progress:
    """How far a search is, for whoever watches."""

    study: Study
    pool: Pool
    order: Order
    budget: Budget
    began: float = field(default_factory=time.monotonic)
    running: dict[int, Seen] = field(default_factory=dict)
    refused: list[tuple[Point, str]] = field(default_factory=list)
    """Candidates that the engine refused when their turn came."""
    ended: str = ""
    """Why the search is over."""
    num_before: int = 0
    """Trials of former searches that count."""

    @property
    def spent_s(self) -> float:
        """Since the search began."""
        return time.monotonic() - self.began


@dataclass
class Tuner:
    """One search in one folder."""

    progress: Progress
    base_key: str
    """Of everything that no candidate changes."""
    make: Callable[[Seen], Run]
    """A trial of a candidate; ConfigError when there can be none: nothing is recorded then."""
    unit: str = "step"
    """Whose seconds are made small."""
    refused: Sequence[str] = ()
    """Why there are no candidates of some kind, for whoever asks when none is left."""
    num_parallel: int = 1
    """Trials side by side."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    """Set when trials that are still running are not wanted any more."""
    watch: Callable[[Progress], None] = lambda progress: None

    def search(self) -> Trial:
        """Try until the search ends; the best trial. NoPlanError when nothing ran."""
        progress = self.progress
        progress.num_before = replay(progress.order, progress.pool, self.trials, self.key_of)
        why = self._search_alone() if self.num_parallel == 1 else self._search_side_by_side()
        progress.ended = why
        self.watch(progress)
        best = self.best
        if best is None:
            raise NoPlanError(self._nothing())
        return best

    @property
    def trials(self) -> list[Trial]:
        """Those of this very question."""
        return trials_of(self.progress.study.trials, self.base_key)

    @property
    def best(self) -> Trial | None:
        """The fastest of them."""
        return best_of(self.trials)

    def key_of(self, point: Point) -> str:
        """What a record of a candidate is known by."""
        return f"{self.base_key}-{point.key}"

    def _search_alone(self) -> str:
        """One trial after the other; why it is over."""
        while not (why := self._over()):
            seen = self.progress.order.next()
            if seen is None:
                return ALL_TRIED
            if (begun := self._begin(seen)) is not None:
                self._finish(begun, self._run(begun))
        return why

    def _search_side_by_side(self) -> str:
        """Several trials at once; why it is over. Those that run by then are waited for."""
        running: dict[Future[Outcome], Begun] = {}
        with ThreadPoolExecutor(self.num_parallel) as executor:
            try:
                while True:
                    why = self._over()
                    seen = None if why or len(running) == self.num_parallel else self.progress.order.next()
                    if seen is not None:
                        if (begun := self._begin(seen)) is not None:
                            running[executor.submit(self._run, begun)] = begun
                        continue
                    if not running:
                        return why or ALL_TRIED
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        self._finish(running.pop(future), future.result())
            finally:
                self.cancelled.set()

    def _begin(self, seen: Seen) -> Begun | None:
        """A trial that may start now; None where there can be none."""
        progress = self.progress
        try:
            run = self.make(seen)
        except ConfigError as error:
            progress.refused.append((seen.point, error.faults[0].what))
            return None
        number = max(progress.study.next_number(), max(progress.running, default=0) + 1)
        progress.running[number] = seen
        self.watch(progress)
        best = self.best
        return Begun(number, seen, run, best.time_s if best else None, time.time())

    def _finish(self, begun: Begun, outcome: Outcome) -> None:
        """Record a trial, and learn from it."""
        progress = self.progress
        del progress.running[begun.number]
        trial = _record(begun.number, self.key_of(begun.seen.point), begun.seen, outcome, begun.started)
        progress.study.add(trial)
        progress.order.learn(begun.seen, trial)
        self.watch(progress)

    def _run(self, begun: Begun) -> Outcome:
        """Once, and once more where its timings do not count: the host may have been busy with something else."""
        folder, outcome = self.progress.study.folder(begun.number), Outcome("refused")
        for _ in range(ATTEMPTS):
            shutil.rmtree(folder, ignore_errors=True)
            try:
                outcome = begun.run(folder, begun.best_s)
            except ConfigError as error:
                return Outcome("refused", error.faults[0].what)
            if outcome.status != "invalid_timing":
                break
        return outcome

    def _over(self) -> str:
        """Why the search ends here, or nothing."""
        budget, progress = self.progress.budget, self.progress
        trials, best = self.trials, self.best
        if budget.max_trials is not None and len(trials) + len(progress.running) >= budget.max_trials:
            return f"{budget.max_trials} trials were allowed"
        if budget.max_time_s is not None and progress.spent_s >= budget.max_time_s:
            return f"{budget.max_time_s:.0f} s were allowed"
        if best is None:
            return ""
        if budget.patience is not None and (since := _since_better(trials)) >= budget.patience:
            return f"the last {since} trials were no better"
        if isinstance(progress.order, Guided) and best.time_s is not None and len(trials) >= budget.min_trials:
            bound_s = progress.order.bound_s()
            if bound_s == float("inf"):
                return "" if not trials else ALL_TRIED
            if best.time_s <= bound_s:
                return f"none that is left is likely to be faster than {bound_s / best.time_s:.3f} x the best"
        return ""

    def _nothing(self) -> list[Fault]:
        """Why there is no best."""
        if not self.trials:
            faults = [Fault("no candidate is left to be tried", "experiment.auto_tuner.space")]
            reasons = Counter(reason for reason in (*(why for _, why in self.progress.refused), *self.refused))
            return faults + [Fault(f"{count} x {reason}") for reason, count in reasons.most_common(3)]
        # Which rank or step it was is no other reason.
        alike = {re.sub(r"\d+", "#", f"{trial.status}: {trial.reason}"): trial for trial in reversed(self.trials)}
        kinds = Counter(re.sub(r"\d+", "#", f"{trial.status}: {trial.reason}") for trial in self.trials)
        [(kind, count)] = kinds.most_common(1)
        reason = f"{alike[kind].status}: {alike[kind].reason}"
        what = f"all {len(self.trials)} trials failed, most of them ({count}) so: {reason}"
        return [Fault(what, str(self.progress.study.root), "the trials' folders have their logs")]


def _since_better(trials: list[Trial]) -> int:
    """Trials since the best one was found, dead ones not counted."""
    best, since = float("inf"), 0
    for trial in trials:
        if trial.status == "ok" and trial.time_s is not None and trial.time_s < best * (1 - MIN_GAIN):
            best, since = trial.time_s, 0
        elif trial.is_good:
            since += 1
    return since


def _record(number: int, key: str, seen: Seen, outcome: Outcome, started: float) -> Trial:
    return Trial(
        **{field.name: getattr(outcome, field.name) for field in fields(Outcome)},
        number=number,
        key=key,
        point=seen.point.record,
        values={name: _plain(value) for name, value in seen.point.values.items()},
        predicted_s=seen.predicted_s,
        corrected_s=seen.corrected_s,
        memory_share=seen.memory_share,
        started=started,
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def fingerprint(value: Any) -> str:
    """Eight digits of a hash of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:8]
