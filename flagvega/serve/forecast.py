"""What a set of instances makes of traffic: engines with continuous batching behind a gateway.

A request goes where it is expected to be finished first, as our gateway does it: through one instance, or through one
that reads its prompt and one that writes the answer.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Final

from flagvega.serve.batching import Engine, Member
from flagvega.serve.curve import Passing
from flagvega.serve.gateway.instance import Forecast as Expected
from flagvega.serve.gateway.routes import HANDED_TOKENS, Load, find_routes
from flagvega.serve.traffic import Answered, Request, Targets

REFUSED = "refused: it would have waited too long"
TOO_LONG = "longer than the cache"
AT_ONCE: Final = Passing()


@dataclass(frozen=True)
class Share:
    """What an instance did."""

    num_requests: int
    sequences: float
    """That it worked on at once, on average."""
    reading: float
    """Share of the time that prompts took."""
    busy: float
    """Share of the time in which it was at work."""
    num_preempted: int
    """Times that its cache was full and a sequence had to be begun anew."""


@dataclass(frozen=True)
class Forecast:
    """What is expected of a fleet."""

    answers: tuple[Answered, ...]
    """In the order of the requests."""
    places: tuple[int, ...]
    """The member that each went to; -1: it was refused."""
    duration_s: float
    shares: tuple[Share, ...]
    """By member."""


def forecast(
    members: Sequence[Member], requests: Sequence[Request], patience_s: float = inf, passing: Passing = AT_ONCE
) -> Forecast:
    """What comes of requests, in the order of their times, behind a gateway.

    ``patience_s``: the gateway refuses what would wait longer for its first token. ``passing``: what it takes to hand
    over what was read of a prompt, where members have roles.
    """
    fleet = _Fleet([Engine(member) for member in members], requests, passing)
    fleet.serve(patience_s)
    answers = fleet.answers()
    end_s = max(fleet.end_s, requests[-1].at_s)
    shares = tuple(
        Share(len(each.done), each.held_s / end_s, each.read_s / end_s, each.step_s / end_s, each.num_preempted)
        for each in fleet.engines
    )
    places = tuple(fleet.places.get(i, -1) for i in range(len(requests)))
    return Forecast(tuple(answers), places, end_s, shares)


def meets_targets(
    members: Sequence[Member], requests: Sequence[Request], targets: Targets, patience_s: float, passing: Passing
) -> bool:
    """Whether so many of the requests meet the targets as are to; it is looked no further than that takes."""
    fleet = _Fleet([Engine(member) for member in members], requests, passing)
    most = (1 - targets.share) * len(requests)
    if not fleet.serve(patience_s, most):
        return False
    return sum(not answer.meets(targets) for answer in fleet.answers()) <= most


@dataclass(eq=False)
class _Fleet:
    """Engines behind a gateway, and what passes between them."""

    engines: list[Engine]
    requests: Sequence[Request]
    passing: Passing
    places: dict[int, int] = field(default_factory=dict)
    """The engine that writes the answer to each request."""
    read_elsewhere: set[int] = field(default_factory=set)
    """Requests whose prompts are read by another engine than writes the answer."""
    ends: dict[int, tuple[float, float]] = field(default_factory=dict)
    """When the first token and the last of each answer were there."""
    refused: set[int] = field(default_factory=set)
    end_s: float = 0.0

    def __post_init__(self) -> None:
        # Who only reads goes first and who only writes last: what is handed over by then is known.
        order = ("prefill", "both", "decode")
        self.order = sorted(range(len(self.engines)), key=lambda j: order.index(self.engines[j].role))
        self.has_roles = any(engine.role != "both" for engine in self.engines)
        self.numbers = {engine: j for j, engine in enumerate(self.engines)}
        self.coming: list[list[tuple[float, int]]] = [[] for _ in self.engines]
        """Heaps of what is handed over to each engine: when, and which request."""
        self.num_seen = [0] * len(self.engines)

    def serve(self, patience_s: float, most_refused: float = inf) -> bool:
        """All requests; False when more than so many were refused, and the rest was not looked at."""
        for i, request in enumerate(self.requests):
            self.run(request.at_s)
            if not self.send(i, patience_s):
                self.refused.add(i)
                if len(self.refused) > most_refused:
                    return False
        self.run(inf)
        return True

    def send(self, index: int, patience_s: float) -> bool:
        """Send a request on the way that is expected to finish it first; whether there is one in time."""
        request = self.requests[index]
        best, best_s = None, inf
        for route, expected in self._routes(request):
            if expected.first_s <= patience_s and expected.finish_s < best_s:
                best, best_s = route, expected.finish_s
        if best:
            self._take(index, request, *best)
        return best is not None

    def _routes(self, request: Request) -> Iterator[tuple[tuple[Engine, Engine | None], Expected]]:
        """(who writes, who reads for it) and what is expected of the two."""
        given, wanted, now = request.input_tokens, request.output_tokens, request.at_s
        if not self.has_roles:  # without a route for each: most forecasts are of such fleets
            for engine in self.engines:
                yield (engine, None), engine.forecast(given, wanted, 1, now)
            return
        for route, expected in find_routes(self.engines, Load(lambda _: given, wanted, 1, is_single=True), now):
            yield (route.writer, route.reader), expected

    def _take(self, index: int, request: Request, writer: Engine, reader: Engine | None) -> None:
        self.places[index] = self.numbers[writer]
        if reader is None:
            writer.take(index, request)
        else:
            self.read_elsewhere.add(index)
            writer.promised[index] = request.output_tokens
            reader.take(index, replace(request, output_tokens=1))

    def run(self, until_s: float) -> None:
        """Take all steps that begin before ``until_s``, and hand over."""
        for j in self.order:
            engine, coming = self.engines[j], self.coming[j]
            while coming and coming[0][0] <= until_s:
                at_s, index = heapq.heappop(coming)
                engine.run(at_s)
                del engine.promised[index]
                request = replace(self.requests[index], at_s=at_s)
                engine.take(index, request, request.input_tokens - round(HANDED_TOKENS))
            engine.run(until_s)
            if self.num_seen[j] < len(engine.done):
                self._note(j)

    def _note(self, j: int) -> None:
        """What an engine is done with since the last time."""
        engine = self.engines[j]
        for job, last_s in engine.done[self.num_seen[j] :]:
            writer, spent_s = self.places[job.index], engine.curve.overhead_s
            if job.index in self.read_elsewhere and writer == j:
                spent_s = 0.0  # it is part of what handing over took
            elif job.index in self.read_elsewhere:
                if last_s < inf:
                    at_s = last_s + spent_s + self.passing.seconds(self.requests[job.index].input_tokens)
                    heapq.heappush(self.coming[writer], (at_s, job.index))
                    continue
                del self.engines[writer].promised[job.index]
            self.ends[job.index] = job.first_s + spent_s, last_s + spent_s
            self.end_s = max(self.end_s, last_s if last_s < inf else 0.0)
        self.num_seen[j] = len(engine.done)

    def answers(self) -> list[Answered]:
        """What came of the requests."""
        return [self._answer(i) for i in range(len(self.requests))]

    def _answer(self, index: int) -> Answered:
        request = self.requests[index]
        if index in self.refused:
            return _unanswered(request, REFUSED)
        first_s, last_s = self.ends[index]
        if last_s == inf:
            return _unanswered(request, TOO_LONG)
        at_s, given = request.at_s, request.input_tokens
        return Answered(at_s, first_s - at_s, last_s - at_s, given, request.output_tokens)


def _unanswered(request: Request, why: str) -> Answered:
    return Answered(request.at_s, 0.0, 0.0, request.input_tokens, 0, why)
