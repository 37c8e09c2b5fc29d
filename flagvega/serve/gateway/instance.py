"""One instance behind the gateway: what it is doing, what it can do, whether it serves."""

from __future__ import annotations

import asyncio
import heapq
import time
from dataclasses import dataclass
from typing import Final, Literal

from flagvega.serve.gateway.capacity import Capacity
from flagvega.serve.gateway.prefixes import Prefixes
from flagvega.serve.gateway.settings import InstanceSettings

State = Literal["starting", "ready", "ejected", "draining"]

LEAST_SHARE: Final = 0.1
"""Of its capacity that a new instance is taken to have at first."""
OVERDUE: Final = 0.25
"""Of its expected length, what an answer that is already longer is expected to have left."""


@dataclass(eq=False)
class Flight:
    """A request that an instance works on."""

    prompt_tokens: float
    """Expected to be read: without what the instance has seen before."""
    output_tokens: float
    """Expected in all."""
    width: int
    """Sequences at once."""
    stream: bool
    ahead_tokens: float
    """Tokens of prompts to be read before its first token, its own included."""
    at_once: bool
    """Whether there was a slot for it when it came."""
    num_before: int
    """Requests that the instance had when it came."""
    started: float
    scope: asyncio.Timeout
    """Ended early when the instance is ejected."""
    first_at: float | None = None
    last_at: float | None = None
    num_tokens: int = 0

    def note(self, num_tokens: int, now: float) -> None:
        """Tokens came."""
        if num_tokens:
            self.first_at = self.first_at or now
            self.last_at = now
            self.num_tokens += num_tokens

    def left(self, now: float, prefill_s: float, step_s: float) -> float:
        """Tokens per sequence that are still to come, as expected."""
        done = self.num_tokens / self.width
        if not self.stream:
            done = max(0.0, now - self.started - prefill_s) / step_s
        expected = self.output_tokens / self.width
        return max(expected - done, OVERDUE * expected, 1.0)


@dataclass(frozen=True)
class Forecast:
    """What is expected of a request, in seconds from now."""

    first_s: float
    finish_s: float


class Instance:
    """An instance, and what it has in flight."""

    def __init__(self, settings: InstanceSettings, slow_start_s: float) -> None:
        self.settings = settings
        self.id, self.url, self.role = settings.id, settings.url.rstrip("/"), settings.role
        self.capacity = Capacity(settings)
        self.prefixes = Prefixes()
        self.flights: dict[Flight, None] = {}
        self.state: State = "starting"
        self.trouble = ""
        """Why it does not serve."""
        self.models: tuple[str, ...] = ()
        self.max_tokens: int | None = None
        """Prompt and answer together, as the instance says."""
        self.failures = 0
        self.ready_at = 0.0
        self.seen_at = 0.0
        """When it last gave a token."""
        self.picked_at = 0.0
        self.wake = asyncio.Event()
        """Set to have it looked at now."""
        self._slow_start_s = slow_start_s

    # ---- whether it serves ----

    def admit(self, models: tuple[str, ...], max_tokens: int | None) -> None:
        """It serves from now on, slowly at first."""
        self.state, self.trouble, self.failures = "ready", "", 0
        self.models, self.max_tokens = models, max_tokens
        self.ready_at = self.seen_at = time.monotonic()

    def eject(self, reason: str) -> None:
        """It gets nothing more; what it has not finished is broken off, to be tried elsewhere where that can be."""
        self.state, self.trouble = "ejected", reason
        self.prefixes.clear()
        now = asyncio.get_running_loop().time()
        for flight in self.flights:
            if not flight.scope.expired():
                flight.scope.reschedule(now)

    # ---- what it has in flight ----

    @property
    def num_sequences(self) -> int:
        """Sequences in flight."""
        return sum(flight.width for flight in self.flights)

    def waiting_tokens(self) -> float:
        """Tokens of prompts that it has not read yet, as far as is known."""
        return sum(flight.prompt_tokens for flight in self.flights if flight.stream and flight.first_at is None)

    def output_tokens(self, now: float) -> float:
        """Tokens that are still to come from it, as expected."""
        step_s = self.capacity.step_s(self.num_sequences)
        return sum(self._left(flight, now, step_s) * flight.width for flight in self.flights)

    def _left(self, flight: Flight, now: float, step_s: float) -> float:
        return flight.left(now, self.capacity.prefill_s(flight.ahead_tokens) if not flight.stream else 0.0, step_s)

    def share(self, now: float) -> float:
        """Of its capacity, what it is taken to have: all of it, but for a new instance."""
        if self._slow_start_s <= 0:
            return 1.0
        return min(1.0, max(LEAST_SHARE, (now - self.ready_at) / self._slow_start_s))

    def forecast(self, prompt_tokens: float, output_tokens: float, width: int, now: float) -> Forecast:
        """When a request would have its first token and its last.

        That an instance is new makes others be chosen before it; it is no reason to refuse what it can begin in time.
        """
        num, slots = self.num_sequences, self.capacity.slots
        step_s = self.capacity.step_s(num + width)
        first_s = self.capacity.prefill_s(self.waiting_tokens() + prompt_tokens)
        if num + width > slots and self.flights:
            first_s = max(first_s, self._slot_free_s(now, step_s) + self.capacity.prefill_s(prompt_tokens))
        finish_s = first_s + max(0.0, output_tokens / width - 1) * step_s
        return Forecast(first_s, finish_s / self.share(now))

    def next_step_s(self, width: int) -> float:
        """Seconds of a step with so many sequences more than it has."""
        return self.capacity.step_s(self.num_sequences + width)

    def _slot_free_s(self, now: float, step_s: float) -> float:
        """When a request that comes now gets a slot: those before it take them as they become free."""
        ends = [0.0] * self.capacity.slots
        for flight in self.flights:
            left_s = self._left(flight, now, step_s) * step_s
            rounds, rest = divmod(flight.width, len(ends))
            if rounds:  # it fills every slot; order stays as it is
                ends = [end + rounds * left_s for end in ends]
            for _ in range(rest):
                heapq.heapreplace(ends, ends[0] + left_s)
        return ends[0]

    def owes_s(self, now: float) -> float:
        """For how long it should have given a token: streams are there, and none came for longer than prompts take."""
        begun = [flight.started for flight in self.flights if flight.stream]
        if not begun:
            return 0.0
        return now - max(self.seen_at, min(begun)) - self.capacity.prefill_s(self.waiting_tokens())

    # ---- what is learned ----

    def learn(self, flight: Flight, num_tokens: int, now: float) -> None:
        """A request ended well, with so many tokens in all."""
        per_sequence = num_tokens / flight.width
        busy = (flight.num_before + flight.width + self.num_sequences) / 2
        if flight.stream and flight.first_at and flight.last_at:
            if flight.at_once:
                self.capacity.learn_prefill(flight.ahead_tokens, flight.first_at - flight.started)
            if per_sequence >= 4:
                self.capacity.learn_step(busy, (flight.last_at - flight.first_at) / (per_sequence - 1))
        elif not flight.stream and flight.at_once and per_sequence >= 8:
            spent_s = now - flight.started - self.capacity.prefill_s(flight.ahead_tokens)
            self.capacity.learn_step(busy, max(spent_s, 1e-4) / per_sequence)
