"""All instances, and which of them is to answer a request: the one that is expected to finish it first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from flagvega.serve.gateway.errors import ApiError, overloaded, unavailable
from flagvega.serve.gateway.instance import Flight, Forecast, Instance
from flagvega.serve.gateway.lengths import UNKNOWN, Lengths
from flagvega.serve.gateway.prefixes import BLOCK_CHARACTERS, BLOCK_TOKENS
from flagvega.serve.gateway.question import TRANSFER, Question
from flagvega.serve.gateway.routes import Load, Route, find_routes
from flagvega.serve.gateway.settings import Settings

CHARACTERS_PER_TOKEN: Final = 4.0
KEPT: Final = 0.95
"""Weight of what was known before, at each new answer."""
ALIKE: Final = 0.02
"""Instances whose forecasts differ by less than this share take turns."""


class Fleet:
    """The instances, and what is known about requests."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        slow_start_s = settings.probing.slow_start_s
        self.instances = tuple(Instance(each, slow_start_s) for each in settings.instances)
        self.has_roles = any(each.role != "both" for each in self.instances)
        self.draining = False
        """Whether nothing new is taken."""
        self._characters_per_token = CHARACTERS_PER_TOKEN
        self._lengths: dict[str, Lengths] = {}

    # ---- what there is ----

    def ready(self) -> list[Instance]:
        """Those that serve."""
        return [each for each in self.instances if each.state == "ready"]

    def models(self) -> dict[str, int | None]:
        """Models that are served, with the tokens that each can hold."""
        found: dict[str, int | None] = {}
        for each in self.ready():
            for model in each.models:
                found[model] = max(filter(None, (found.get(model), each.max_tokens)), default=None)
        return found

    @property
    def num_flights(self) -> int:
        """Requests that are being answered."""
        return sum(len(each.flights) for each in self.instances)

    # ---- what is known about requests ----

    def prompt_tokens(self, question: Question) -> float:
        """Tokens of a prompt, as estimated."""
        return question.num_ids + question.num_characters / self._characters_per_token

    def output_tokens(self, question: Question) -> float:
        """Tokens of an answer, as expected."""
        lengths = self._lengths.get(question.model, UNKNOWN)
        return lengths.expect(self._limit(question)) * question.num_answers

    def _limit(self, question: Question) -> int | None:
        """Tokens that an answer is limited to, by its client and then by what the instances hold."""
        if question.max_tokens is None:
            return None
        return min(question.max_tokens, self.models().get(question.model) or question.max_tokens)

    def learn(self, question: Question, prompt_tokens: int | None, num_tokens: int) -> None:
        """An answer ended."""
        if prompt_tokens and question.num_characters > 64 and not question.num_ids:
            seen = question.num_characters / prompt_tokens
            self._characters_per_token = KEPT * self._characters_per_token + (1 - KEPT) * seen
        lengths = self._lengths.setdefault(question.model, Lengths())
        lengths.learn(self._limit(question), num_tokens / question.num_answers)

    # ---- choosing ----

    def check(self, question: Question) -> None:
        """Refuse what no instance can serve, whatever the load.

        :raises ApiError: unknown model, or a prompt that is too long.
        """
        if self.draining:
            raise unavailable("the gateway is about to stop and takes nothing new")
        if question.names_cache and self.has_roles:
            raise ApiError(400, f"'{TRANSFER}' is not a client's to give", param=TRANSFER)
        models = self.models()
        if not models:
            raise unavailable("no instance serves just now")
        if question.model not in models:
            what = f"there is no model '{question.model}' here; GET /v1/models lists what is served"
            raise ApiError(404, what, "not_found_error", "model_not_found", "model")
        most = self.settings.limits.answers
        if question.num_answers > most:
            raise ApiError(400, f"more than {most} answers at once ('n', for each prompt) are not given", param="n")
        limit = self.settings.limits.prompt_tokens
        if limit is None and question.num_answers == 1:
            # An estimate refuses only what is far beyond: the engine counts.
            limit = 2 * (models[question.model] or 0) or None
        # Nor may what others send (images, say) make texts seem long.
        characters_per_token = max(self._characters_per_token, CHARACTERS_PER_TOKEN)
        tokens = question.num_ids + round(question.num_characters / characters_per_token)
        if limit and tokens > limit:
            what = f"the prompt has about {tokens} tokens, and {limit} are the limit"
            raise ApiError(400, what, code="context_length_exceeded", param="prompt")

    def choose(self, question: Question, tried: Collection[int]) -> Route[Instance]:
        """Who is to answer.

        :raises ApiError: when none is there, or all would begin too late.
        """
        now = time.monotonic()
        able = [each for each in self.ready() if question.model in each.models]
        able = [each for each in able if each.id not in tried] or able
        if not able:
            raise unavailable(f"no instance serves '{question.model}' just now")
        load = Load[Instance](
            unread=lambda each: self._unread_tokens(each, question),
            output_tokens=self.output_tokens(question),
            width=question.num_answers,
            is_single=question.is_single,
        )
        found = list(find_routes(able, load, now))
        limit_s = self.settings.waiting.first_token_s
        in_time = [entry for entry in found if entry[1].first_s <= limit_s]
        if not in_time:
            soonest_s = min(forecast.first_s for _, forecast in found)
            what = f"all instances are busy: a first token is expected in {soonest_s:.1f} s, the limit is {limit_s:g} s"
            raise overloaded(what, soonest_s - limit_s)
        route = _soonest(in_time)
        route.note_picked(now)
        return route

    @contextmanager
    def flight(
        self, instance: Instance, question: Question, prompt_tokens: float, scope: asyncio.Timeout, reads: bool = False
    ) -> Iterator[Flight]:
        """While it lasts, a request is among those that an instance works on."""
        flight = self.begin(instance, question, prompt_tokens, scope, reads)
        try:
            yield flight
        finally:
            del instance.flights[flight]

    def begin(
        self, instance: Instance, question: Question, prompt_tokens: float, scope: asyncio.Timeout, reads: bool = False
    ) -> Flight:
        """Count a request among those that an instance works on; ``reads``: it only reads the prompt."""
        num = instance.num_sequences
        flight = Flight(
            prompt_tokens=prompt_tokens,
            output_tokens=1.0 if reads else self.output_tokens(question),
            width=question.num_answers,
            stream=question.stream or reads,
            ahead_tokens=instance.waiting_tokens() + prompt_tokens,
            at_once=num + question.num_answers <= instance.capacity.slots,
            num_before=num,
            started=time.monotonic(),
            scope=scope,
        )
        instance.flights[flight] = None
        instance.prefixes.add(question.blocks)
        return flight

    def _unread_tokens(self, instance: Instance, question: Question) -> float:
        known = instance.prefixes.num_known(question.blocks)
        size = BLOCK_TOKENS if question.num_ids else BLOCK_CHARACTERS / self._characters_per_token
        return max(1.0, self.prompt_tokens(question) - known * size)


def _soonest(found: Sequence[tuple[Route[Instance], Forecast]]) -> Route[Instance]:
    """The one that finishes first; of those that are alike, the one that waited longest."""
    best_s = min(forecast.finish_s for _, forecast in found)
    alike = [route for route, forecast in found if forecast.finish_s <= best_s * (1 + ALIKE)]
    return min(alike, key=lambda route: route.picked_at)
