"""Optuna chooses the next candidate; its study is kept where optuna-dashboard finds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flagvega.errors import ConfigError, Fault
from flagvega.tune.candidates import Seen
from flagvega.tune.learn import Model
from flagvega.tune.pool import Pool
from flagvega.tune.study import Trial

try:
    import optuna
    from optuna.storages.journal import JournalFileBackend
except ModuleNotFoundError as error:
    FIX = "pip install -r requirements/tune.txt, or write algo: {name: guided}"
    raise ConfigError(Fault("optuna is not installed", "experiment.auto_tuner.algo.name", FIX)) from error

STUDY_FILE = "optuna.log"
MAX_CANDIDATES = 10_000
"""Of more it is given the fastest by their predictions: every value of a dimension costs it time."""
MAX_MISSES = 50
"""Suggestions in a row that are no candidates, after which one is drawn from those that are."""


@dataclass
class Sampled:
    """Optuna's TPE over every dimension of the candidates; combinations that are none are told as pruned."""

    pool: Pool
    study: Any
    seed: int
    model: Model = field(default_factory=Model)
    asked: dict[int, Any] = field(default_factory=dict)
    """Optuna's trial of each candidate that was given out."""

    @classmethod
    def open(cls, pool: Pool, root: Path, name: str, seed: int) -> Sampled:
        """With the study in ``root``: ``optuna-dashboard <root>/optuna.log`` shows it."""
        backend = JournalFileBackend(str(root / STUDY_FILE))
        return cls._make(pool, optuna.storages.JournalStorage(backend), name, seed)

    @classmethod
    def in_memory(cls, pool: Pool, seed: int) -> Sampled:
        """Kept nowhere."""
        return cls._make(pool, None, "tune", seed)

    @classmethod
    def _make(cls, pool: Pool, storage: Any, name: str, seed: int) -> Sampled:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=False)
        study = optuna.create_study(storage=storage, study_name=name, sampler=sampler, load_if_exists=True)
        return cls(pool, study, seed)

    def __post_init__(self) -> None:
        self.pool.predict(self.model)
        best = [index for index, _ in self.pool.ranked(self.model, 0.0, MAX_CANDIDATES)]
        is_taken = np.zeros(self.pool.num_legal, dtype=bool)
        is_taken[best] = True
        self.pool.alive &= is_taken
        self._index: dict[tuple[Any, ...], int] = {}
        self._values: dict[str, list[Any]] = {}
        for index in np.flatnonzero(self.pool.alive):
            dimensions = _dimensions(self.pool.point(int(index))[0].values)
            for name, value in dimensions.items():
                values = self._values.setdefault(name, [])
                if value not in values:
                    values.append(value)
            self._index[tuple(sorted(dimensions.items()))] = int(index)
        self._known: set[int] = set()

    def next(self) -> Seen | None:
        """What Optuna suggests, until it is a candidate that has not been tried."""
        if not self.pool.alive.any():
            return None
        for _ in range(MAX_MISSES):
            trial = self.study.ask()
            chosen = {name: trial.suggest_categorical(name, values) for name, values in self._values.items()}
            index = self._index.get(tuple(sorted(chosen.items())))
            if index is not None and self.pool.alive[index]:
                return self._give(index, trial)
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        left = np.flatnonzero(self.pool.alive)
        index = int(np.random.default_rng(self.seed + len(self.asked)).choice(left))
        self.study.enqueue_trial(_dimensions(self.pool.point(index)[0].values))
        trial = self.study.ask()
        for name, values in self._values.items():
            trial.suggest_categorical(name, values)
        return self._give(index, trial)

    def _give(self, index: int, trial: Any) -> Seen:
        self.pool.drop(index)
        self.asked[index] = trial
        return self.pool.see(index, self.model, 0.0)

    def learn(self, seen: Seen, trial: Trial) -> None:
        """Tell Optuna the seconds, or that the trial failed; what it knows of a former search it is not told again."""
        self.pool.drop(seen.index)
        state = optuna.trial.TrialState
        if seen.index in self.asked:
            if trial.is_good:
                self.study.tell(self.asked[seen.index], trial.time_s)
            else:
                self.study.tell(self.asked[seen.index], state=state.FAIL)
            return
        dimensions = _dimensions(trial.values)
        if any(each.params == dimensions and each.state.is_finished() and each.state != state.PRUNED
               for each in self.study.trials):  # fmt: skip
            return
        distributions: dict[str, optuna.distributions.BaseDistribution] = {
            name: optuna.distributions.CategoricalDistribution(values) for name, values in self._values.items()
        }
        made = optuna.trial.create_trial(
            params=dimensions, distributions=distributions, value=trial.time_s if trial.is_good else None,
            state=state.COMPLETE if trial.is_good else state.FAIL,
        )  # fmt: skip
        self.study.add_trial(made)


def _dimensions(values: Mapping[str, Any]) -> dict[str, Any]:
    """What Optuna is to choose, one after the other: each mesh, the layers of each stage as one, and the rest."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name == "meshes":
            for i, words in enumerate(str(value).split(" | ")):
                found[f"mesh {i}"] = words
        elif isinstance(value, list | tuple):
            found[name] = str(list(value))
        else:
            found[name] = value
    return found
