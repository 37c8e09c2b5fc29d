"""What trials teach about engines: what a step costs; from that, what traffic any other configuration would bear.

A trial shows what a step of its engine costs by the sequences and the prompts in it (``steps``). That does not depend
on how many of them the scheduler takes at once, so the simulation that plans go by predicts every other
``max_num_seqs`` and ``max_num_batched_tokens`` from it. What else a setting changes, factors learn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import exp, hypot, inf, log
from typing import Any, Final

import numpy as np

from flagvega.config.spec import Role
from flagvega.layout.serving import Instance
from flagvega.serve.batching import Member
from flagvega.serve.curve import DEFAULT_SLOTS, DEFAULT_STEP_TOKENS, Curve, Row, curve_of
from flagvega.serve.forecast import forecast
from flagvega.serve.traffic import Answered, Targets, Traffic, draw, judge
from flagvega.serve.tuning.clients import forecast_clients
from flagvega.serve.tuning.score import seconds_per_good
from flagvega.serve.tuning.steps import TYPICAL, StepSums, doubt, fit_steps, sum_steps
from flagvega.tune.candidates import Expected, Settled, Sight
from flagvega.tune.learn import Features, Model
from flagvega.tune.search import Guided
from flagvega.tune.study import Trial

SIMULATED: Final = ("tensor_parallel_size", "pipeline_parallel_size", "num_replicas", "max_num_seqs",
                    "max_num_batched_tokens")  # fmt: skip
"""Settings whose effect the simulation knows."""
KNOWN: Final = 0.3
"""Of what another setting may change a time by, what one of these still may."""
STEP_SD: Final[Mapping[str, float]] = {"trial": 0.03, "profile": 0.1, "other": 0.35, "nothing": 0.7}
"""Deviation of the logarithm of a step's seconds, by where the curve comes from."""
SPEEDUP: Final = 0.5
"""Exponent of devices in the speed of an instance of which only one with other degrees is known."""
OVERHEAD_S: Final = 0.005
"""Of a first token, beside its steps."""
CURIOSITY: Final = 0.1
FAR: Final = 256
MOST: Final = 1.5
"""A measured time counts at most so many times e above or below what was predicted: beyond, it says little more."""


@dataclass(frozen=True)
class Form:
    """Instances of one form have steps alike."""

    service: str
    chip: str
    tp: int = 1
    pp: int = 1


@dataclass(frozen=True)
class Seat:
    """An instance as the simulation has it."""

    form: Form
    slots: int
    step_tokens: int
    role: Role = "both"


def seats_of(instances: Sequence[Instance], arguments: Mapping[str, Mapping[str, Any]]) -> tuple[Seat, ...]:
    """Of instances, whose services have these arguments."""
    return tuple(
        Seat(
            Form(each.service, each.chip, each.tp, each.pp),
            int(arguments[each.service].get("max_num_seqs") or DEFAULT_SLOTS),
            int(arguments[each.service].get("max_num_batched_tokens") or DEFAULT_STEP_TOKENS),
            each.role,
        )
        for each in instances
    )


def steps_of(seats: Sequence[Seat], answers: Sequence[Answered]) -> list[StepSums]:
    """The steps of each instance, from what all of them answered.

    Of one that only reads or only writes, half of what is in its steps is not to be seen.
    """
    return [
        sum_steps(
            [each for each in answers if len(seats) == 1 or each.instance == str(number)], seat.step_tokens, seat.slots
        )
        if seat.role == "both"
        else StepSums()
        for number, seat in enumerate(seats)
    ]


@dataclass
class Knowledge:
    """Of one search: the traffic, and what is known of engines."""

    traffic: Traffic
    targets: Targets
    measured: Mapping[tuple[str, int, int], Row] = field(default_factory=dict)
    """What a profile says of instances, by chip, tp and pp."""
    sums: dict[Form, StepSums] = field(default_factory=dict)
    caches: dict[Form, int] = field(default_factory=dict)
    """Tokens that the KV cache holds."""
    taught: list[tuple[Configuration, Trial]] = field(default_factory=list)
    _times: dict[tuple[Seat, ...], tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.requests = draw(self.traffic)

    def learn(self, configuration: Configuration, trial: Trial) -> None:
        """One more trial."""
        self.taught.append((configuration, trial))
        if told := trial.details.get("instances"):
            for seat, each in zip(configuration.seats, told, strict=True):
                steps = each["steps"]
                if steps["num"]:
                    sums = StepSums(tuple(map(tuple, steps["xx"])), tuple(steps["xy"]), steps["num"])
                    self.sums[seat.form] = self.sums.get(seat.form, StepSums()) + sums
                if each["cache_tokens"]:
                    self.caches[seat.form] = each["cache_tokens"]
        self._times.clear()

    def time_s(self, seats: tuple[Seat, ...]) -> tuple[float, float]:
        """(seconds for each good request, the same if steps are a deviation shorter)."""
        if seats not in self._times:
            curves = [self._curve(seat) for seat in seats]
            time_s, sequences = self._simulate(seats, curves)
            faster = [
                _faster(curve, exp(-self._deviation(seat.form, number)))
                for seat, curve, number in zip(seats, curves, sequences, strict=True)
            ]
            low_s, _ = self._simulate(seats, faster)
            # Of many that are expected to be alike, the one that takes in most at once shows most of its engine.
            room = 1 + CURIOSITY / min(seat.slots for seat in seats) if self.is_blank else 1.0
            self._times[seats] = time_s * room, min(time_s, low_s) * room
        return self._times[seats]

    @property
    def is_blank(self) -> bool:
        """Whether nothing was measured yet."""
        return not self.sums and not self.measured

    def _simulate(self, seats: Sequence[Seat], curves: Sequence[Curve]) -> tuple[float, list[float]]:
        """(seconds for each good request, sequences that each instance works on, on average)."""
        members = [Member(curve, seat.slots) for seat, curve in zip(seats, curves, strict=True)]
        if self.traffic.concurrency:
            answers, duration_s = forecast_clients(members, self.requests, self.traffic.concurrency)
            sequences = [min(self.traffic.concurrency / len(seats), seat.slots) for seat in seats]
        else:
            found = forecast(members, self.requests)
            answers, duration_s = found.answers, found.duration_s
            sequences = [share.sequences for share in found.shares]
        outcome = judge(self.traffic, self.requests, answers, self.targets, duration_s)
        return seconds_per_good(self.traffic, self.targets, outcome), sequences

    def _curve(self, seat: Seat) -> Curve:
        """The steps of an instance."""
        form = seat.form
        cache = self.caches.get(form)
        if form in self.sums:
            return _line(fit_steps(self.sums[form]), seat, cache)
        if row := self.measured.get((form.chip, form.tp, form.pp)):
            return replace(curve_of(row), step_tokens=seat.step_tokens)
        if other := self._other(form):
            gain = (form.tp * form.pp / (other.tp * other.pp)) ** SPEEDUP
            return _faster(_line(fit_steps(self.sums[other]), seat, cache), 1 / gain)
        return _line(TYPICAL, seat, cache)

    def _deviation(self, form: Form, sequences: float) -> float:
        """Of the logarithm of the seconds of steps with so many sequences."""
        if form in self.sums:
            return hypot(STEP_SD["trial"], min(doubt(self.sums[form], max(1.0, sequences)), STEP_SD["nothing"]))
        if (form.chip, form.tp, form.pp) in self.measured:
            return STEP_SD["profile"]
        return STEP_SD["other" if self._other(form) else "nothing"]

    def _other(self, form: Form) -> Form | None:
        """Instances of other degrees of which something is known."""
        alike = (each for each in self.sums if (each.service, each.chip) == (form.service, form.chip))
        return next(alike, None)


def _line(fitted: Sequence[float], seat: Seat, cache_tokens: int | None) -> Curve:
    base, sequence, prompt = fitted
    steps = ((1, base + sequence), (FAR, base + FAR * sequence))
    return Curve(steps, prompt, OVERHEAD_S, seat.step_tokens, cache_tokens)


def _faster(curve: Curve, factor: float) -> Curve:
    """With all of its seconds multiplied."""
    steps = tuple((number, seconds * factor) for number, seconds in curve.steps)
    return replace(curve, steps=steps, prompt_token_s=curve.prompt_token_s * factor)


@dataclass(frozen=True)
class Configuration(Settled):
    """A candidate: settings, and the instances that they make. A family of one."""

    seats: tuple[Seat, ...]
    knowledge: Knowledge = field(repr=False, compare=False)
    part: Any = field(default=None, repr=False, compare=False)
    """What a trial of it is started with."""

    @property
    def features(self) -> Features:
        """Each setting; less of those that the simulation knows about."""
        found: dict[tuple[Any, ...], float] = {("step",): 1.0}
        for name, value in self.settings:
            found["setting", name, str(value)] = KNOWN if name.rpartition(".")[2] in SIMULATED else 1.0
        return found

    def expect(self, model: Model) -> Expected:
        """By the simulation."""
        time_s, low_s = self.knowledge.time_s(self.seats)
        return Expected(np.array([time_s]), np.array([log(time_s / low_s)]), np.zeros(1))

    def look(self, i: int, model: Model) -> Sight:
        """By the simulation."""
        time_s, _ = self.knowledge.time_s(self.seats)
        return Sight(None if self.knowledge.is_blank else time_s, time_s, None)

    def teach(self, model: Model, i: int, trial: Trial) -> None:
        """What is known of steps changes all predictions, so that the factors are learned anew."""
        self.knowledge.learn(self, trial)
        model.steps.rows.clear()
        for configuration, each in self.knowledge.taught:
            assert each.time_s is not None
            expected_s, _ = self.knowledge.time_s(configuration.seats)
            ratio = max(-MOST, min(MOST, log(each.time_s / expected_s)))
            model.learn_step(configuration.features, exp(ratio), 1.0)


@dataclass
class GuidedByTraffic(Guided):
    """As for layouts; and nothing can be better than to answer all requests in time."""

    least_s: float = 0.0

    def bound_s(self) -> float:
        """What none of the rest is likely to undercut."""
        bound_s = super().bound_s()
        return bound_s if bound_s == inf else max(bound_s, self.least_s)
