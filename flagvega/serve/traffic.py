"""Requests that arrive: how many a second, how long, and what clients bear. Drawn by a seed, and the same each time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, repeat
from math import exp, log
from random import Random
from typing import Any

Z99 = 2.3263
"""A normal variable is below it in 99 of 100 cases."""


@dataclass(frozen=True)
class Lengths:
    """How many tokens: always the same, between two numbers, about a typical one, or some of a list."""

    values: tuple[int, ...] = ()
    """Drawn alike, or by ``weights``."""
    weights: tuple[float, ...] = ()
    least: int | None = None
    most: int | None = None
    """Any number from ``least`` to ``most``."""
    median: int | None = None
    p99: int | None = None
    """Log-normal: half are longer than ``median``, one in a hundred longer than ``p99``."""

    def draw(self, rng: Random) -> int:
        """A number of tokens."""
        if self.values:
            return rng.choices(self.values, self.weights or None)[0]
        if self.median is not None:
            assert self.p99 is not None
            drawn = self.median * exp(rng.gauss(0.0, log(self.p99 / self.median) / Z99))
            return max(1, min(round(drawn), 2 * self.p99))
        assert self.least is not None
        assert self.most is not None
        return rng.randint(self.least, self.most)

    @property
    def mean(self) -> float:
        """Tokens on average."""
        if self.values:
            weights = self.weights or (1.0,) * len(self.values)
            return sum(map(float.__mul__, map(float, self.values), weights)) / sum(weights)
        if self.median is not None:
            assert self.p99 is not None
            return self.median * exp((log(self.p99 / self.median) / Z99) ** 2 / 2)
        assert self.least is not None
        assert self.most is not None
        return (self.least + self.most) / 2

    @property
    def longest(self) -> int:
        """Tokens at most."""
        if self.values:
            return max(self.values)
        return 2 * self.p99 if self.p99 is not None else self.most or 1


def fixed(num_tokens: int) -> Lengths:
    """Always as long."""
    return Lengths(values=(num_tokens,))


@dataclass(frozen=True)
class Traffic:
    """What arrives, at random at a rate, or from so many clients that each wait for their answer."""

    input_tokens: Lengths
    output_tokens: Lengths
    rate_per_s: float | None = None
    """Arrivals a second, as of many independent users (Poisson)."""
    concurrency: int | None = None
    """Requests in flight: each that ends is followed by the next. Instead of a rate."""
    num_requests: int = 200
    seed: int = 0


@dataclass(frozen=True)
class Targets:
    """What clients bear; None: anything."""

    first_token_s: float | None = None
    """Until the first token of an answer."""
    per_token_s: float | None = None
    """Between its tokens, on average over the answer."""
    share: float = 0.99
    """Of the requests: so many are to meet the targets."""


@dataclass(frozen=True)
class Request:
    """One request."""

    at_s: float
    input_tokens: int
    output_tokens: int


def draw(traffic: Traffic) -> tuple[Request, ...]:
    """The requests of a traffic in order; with ``concurrency`` they are all there at the beginning."""
    rng = Random(traffic.seed)
    rate, number = traffic.rate_per_s, traffic.num_requests
    times: Any = accumulate(rng.expovariate(rate) for _ in range(number)) if rate else repeat(0.0, number)
    return tuple(Request(at, traffic.input_tokens.draw(rng), traffic.output_tokens.draw(rng)) for at in times)


@dataclass(frozen=True)
class Answered:
    """What came of a request."""

    begun_s: float
    """When it was sent, since the load began."""
    first_token_s: float
    took_s: float
    """Until its last token, since it was sent."""
    input_tokens: int
    output_tokens: int
    error: str = ""
    """Why there is no answer; empty when there is."""
    gaps_s: tuple[float, ...] = ()
    """Between the tokens as they came."""
    instance: str = ""
    """That gave it, where a gateway says so."""

    @property
    def per_token_s(self) -> float:
        """Between tokens on average; 0 where there was one only."""
        return (self.took_s - self.first_token_s) / (self.output_tokens - 1) if self.output_tokens > 1 else 0.0

    def meets(self, targets: Targets) -> bool:
        """Whether it was answered, and fast enough."""
        return (
            not self.error
            and (targets.first_token_s is None or self.first_token_s <= targets.first_token_s)
            and (targets.per_token_s is None or self.per_token_s <= targets.per_token_s)
        )


@dataclass(frozen=True)
class Spread:
    """Seconds, over all answers."""

    mean: float
    p50: float
    p99: float


@dataclass(frozen=True)
class Outcome:
    """What came of a load."""

    num_requests: int
    failures: int
    """Requests without an answer."""
    duration_s: float
    """From its beginning to the last answer."""
    requests_per_s: float
    """Answered ones, over the duration."""
    output_tokens_per_s: float
    first_token_s: Spread
    per_token_s: Spread
    good_share: float
    """Of all requests, those that met the targets."""
    goodput_per_s: float
    """Requests a second that met the targets: that share of the rate, or of what so many clients got through."""
    late_s: float = 0.0
    """The most that a request was sent after its time: much of it, and the load was not the one asked for."""
    host_busy: float | None = None
    """Share of the host's processors that was in use meanwhile; None where nobody looked."""
    answers: tuple[Answered, ...] = field(default=(), repr=False)


def judge(traffic: Traffic, requests: Sequence[Request], answers: Sequence[Answered], targets: Targets,
          duration_s: float, host_busy: float | None = None) -> Outcome:  # fmt: skip
    """The figures of a load, measured or predicted."""
    done = [answer for answer in answers if not answer.error]
    share = sum(answer.meets(targets) for answer in answers) / len(answers)
    rate = traffic.rate_per_s or len(answers) / duration_s
    late = (answer.begun_s - request.at_s for request, answer in zip(requests, answers, strict=True))
    return Outcome(
        num_requests=len(answers),
        failures=len(answers) - len(done),
        duration_s=duration_s,
        requests_per_s=len(done) / duration_s,
        output_tokens_per_s=sum(answer.output_tokens for answer in done) / duration_s,
        first_token_s=spread([answer.first_token_s for answer in done]),
        per_token_s=spread([answer.per_token_s for answer in done if answer.output_tokens > 1]),
        good_share=share,
        goodput_per_s=share * rate,
        late_s=max(late) if traffic.rate_per_s else 0.0,
        host_busy=host_busy,
        answers=tuple(answers),
    )


def spread(values: Sequence[float]) -> Spread:
    """Mean, median and 99th percentile; 0 where there is no value."""
    if not values:
        return Spread(0.0, 0.0, 0.0)
    ordered = sorted(values)
    return Spread(sum(ordered) / len(ordered), percentile(ordered, 0.5), percentile(ordered, 0.99))


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that this share of the ``ordered`` ones does not exceed, between neighbours in proportion."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def outcome_facts(outcome: Outcome) -> Mapping[str, Any]:
    """An outcome for a file or a program, without the single answers."""
    names = ("num_requests", "failures", "duration_s", "requests_per_s", "output_tokens_per_s", "good_share",
             "goodput_per_s", "late_s", "host_busy")  # fmt: skip
    spreads = {name: vars(getattr(outcome, name)) for name in ("first_token_s", "per_token_s")}
    return {name: getattr(outcome, name) for name in names} | spreads
