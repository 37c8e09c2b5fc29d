"""Candidates as the search sees them: it knows their names, their families and what is expected of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flagvega.tune.learn import Features, Model
from flagvega.tune.study import Trial

Floats = NDArray[np.float64]
Settings = tuple[tuple[str, Any], ...]
"""(dimension, value), in the order of the space."""


class Point(Protocol):
    """One candidate."""

    @property
    def values(self) -> Mapping[str, Any]:
        """Every choice by name, as a user knows it."""

    @property
    def key(self) -> str:
        """Alike for equal choices only, in every process."""

    @property
    def record(self) -> dict[str, Any]:
        """Plain data, from which it can be found again."""


@dataclass(frozen=True)
class Expected:
    """What is expected of the candidates of a family, one number for each."""

    times: Floats
    """Seconds, by the prediction and what trials have taught about its parts."""
    deviations: Floats
    """Of the logarithm of these, for what is not known about the parts."""
    memory_shares: Floats
    """Of what the fullest device may hold; 0 where nothing is known."""


@dataclass(frozen=True)
class Sight:
    """A closer look at one candidate."""

    predicted_s: float | None
    """By the prediction alone, where there is one."""
    staged_s: float
    """With what trials have taught about its parts."""
    memory_share: float | None


class Family(Protocol):
    """Candidates of which the model knows the same features: they differ in one number."""

    @property
    def part(self) -> Any:
        """What a trial of them is started with: the business of whoever made the family."""

    @property
    def features(self) -> Features:
        """What their time may depend on beside its prediction."""

    @property
    def choices(self) -> set[tuple[str, str]]:
        """Those that a trial may fail with: (dimension, value)."""

    def __len__(self) -> int: ...

    def point(self, i: int) -> Point:
        """One of them."""

    def position(self, record: Mapping[str, Any]) -> int | None:
        """Of the candidate that a record is of; None: it is none of them."""

    def expect(self, model: Model) -> Expected:
        """Of all of them, quickly; the time may be a lower bound."""

    def look(self, i: int, model: Model) -> Sight:
        """At one of them, thoroughly."""

    def teach(self, model: Model, i: int, trial: Trial) -> None:
        """Correct the model by what was measured of one of them."""


@dataclass(frozen=True)
class Seen:
    """A candidate with what is expected of it."""

    index: int
    """In the pool."""
    position: int
    """In its family."""
    family: Family
    predicted_s: float | None
    corrected_s: float
    low_s: float
    """Optimistic."""
    memory_share: float | None

    @cached_property
    def point(self) -> Any:
        """The candidate, as its family makes it."""
        return self.family.point(self.position)

    @property
    def part(self) -> Any:
        """Of its family."""
        return self.family.part


@dataclass(frozen=True)
class Choice:
    """A candidate that is nothing but settings."""

    settings: Settings = ()

    @property
    def values(self) -> Mapping[str, Any]:
        """The settings."""
        return dict(self.settings)

    @property
    def key(self) -> str:
        """Of the settings."""
        return key_of(self.values)

    @property
    def record(self) -> dict[str, Any]:
        """The settings."""
        return record_settings(self.settings)


@dataclass(frozen=True)
class Settled:
    """What families of one candidate that is nothing but settings have in common."""

    settings: Settings

    def __len__(self) -> int:
        return 1

    @property
    def choices(self) -> set[tuple[str, str]]:
        """Each setting."""
        return {(name, str(value)) for name, value in self.settings}

    def point(self, i: int) -> Choice:
        """The only one."""
        return Choice(self.settings)

    def position(self, record: Mapping[str, Any]) -> int | None:
        """By its settings."""
        return 0 if not record.get("shape") and read_settings(record) == self.settings else None


@dataclass(frozen=True)
class Single(Settled):
    """A family of one, whose seconds and memory may be predicted."""

    part: Any = None
    predicted_s: float | None = None
    memory_share: float | None = None

    @property
    def features(self) -> Features:
        """Each setting; where nothing is predicted, every one may change a lot."""
        first, each = ("unknown", "choice") if self.predicted_s is None else ("step", "setting")
        return {(first,): 1.0} | {(each, name, str(value)): 1.0 for name, value in self.settings}

    def expect(self, model: Model) -> Expected:
        """As predicted."""
        return Expected(np.array([self.predicted_s or 1.0]), np.zeros(1), np.array([self.memory_share or 0.0]))

    def look(self, i: int, model: Model) -> Sight:
        """As predicted."""
        return Sight(self.predicted_s, self.predicted_s or 1.0, self.memory_share)

    def teach(self, model: Model, i: int, trial: Trial) -> None:
        """The whole: it has no parts."""
        assert trial.time_s is not None
        model.learn_step(self.features, trial.time_s, self.predicted_s or 1.0)


def key_of(values: Mapping[str, Any]) -> str:
    """Sixteen digits, alike for equal choices only."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def record_settings(settings: Settings) -> dict[str, Any]:
    """As plain data."""
    return {"settings": [list(pair) for pair in settings]}


def read_settings(record: Mapping[str, Any]) -> Settings:
    """From plain data."""
    return tuple((name, tuple(item) if isinstance(item, list) else item) for name, item in record["settings"])
