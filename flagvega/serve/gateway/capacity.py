"""What an instance can do: seconds per token and per prompt, given, or learned from what it serves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from flagvega.serve.gateway.settings import InstanceSettings

KEPT: Final = 0.98
"""Weight of what was learned before, at each new observation: about the last fifty count."""
SPREAD: Final = 0.05
"""Observations closer together than this share of their mean say little about a slope."""
GIVEN_WEIGHT: Final = 25.0
"""Observations that a measured capacity counts for: a throttled chip is noticed, a hiccup is not."""
UNKNOWN_STEP_S: Final = 0.06
UNKNOWN_PREFILL_TOKENS_PER_S: Final = 5000.0
FAR_TOKENS: Final = 1000.0


@dataclass
class Line:
    """``y = base + slope * x`` through weighted observations, the newest counting most; neither is negative."""

    weight: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    def add(self, x: float, y: float, weight: float = 1.0) -> None:
        """Take in an observation."""
        self.weight = KEPT * self.weight + weight
        self.x = KEPT * self.x + weight * x
        self.y = KEPT * self.y + weight * y
        self.xx = KEPT * self.xx + weight * x * x
        self.xy = KEPT * self.xy + weight * x * y

    @property
    def slope(self) -> float:
        """Rise of y per x."""
        if not self.weight:
            return 0.0
        x, y = self.x / self.weight, self.y / self.weight
        spread = self.xx / self.weight - x * x + (SPREAD * x) ** 2
        return min(max(0.0, (self.xy / self.weight - x * y) / spread), y / x) if spread > 0 and x > 0 else 0.0

    def at(self, x: float) -> float:
        """The y that is expected at ``x``."""
        return self.y / self.weight + self.slope * (x - self.x / self.weight) if self.weight else 0.0


class Capacity:
    """How long an instance takes, for a prompt and for a token."""

    def __init__(self, settings: InstanceSettings) -> None:
        self.slots = settings.slots
        self.known = settings.decode_tokens_per_s is not None and settings.prefill_tokens_per_s is not None
        """Whether it was given; what is not, begins as a guess."""
        weight = GIVEN_WEIGHT if settings.decode_tokens_per_s else 1.0
        rate = settings.decode_tokens_per_s
        full_s = self.slots / rate if rate else UNKNOWN_STEP_S
        # Until something is known, full slots are taken to need twice the time: requests spread.
        alone_s = settings.step_s or (full_s if rate else full_s / 2)
        self._step = Line()
        self._step.add(1, alone_s, weight)
        self._step.add(self.slots, full_s, weight)
        weight = GIVEN_WEIGHT if settings.prefill_tokens_per_s else 1.0
        far_s = FAR_TOKENS / (settings.prefill_tokens_per_s or UNKNOWN_PREFILL_TOKENS_PER_S)
        self._prefill = Line()
        self._prefill.add(0, alone_s, weight)
        self._prefill.add(FAR_TOKENS, alone_s + far_s, weight)

    def step_s(self, num_requests: int) -> float:
        """Seconds between two tokens of a request, when ``num_requests`` are worked on."""
        return self._step.at(min(num_requests, self.slots))

    def prefill_s(self, num_tokens: float) -> float:
        """Seconds to the first token, when so many tokens of prompts are to be read before it."""
        return self._prefill.at(num_tokens)

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens that all slots together give."""
        return self.slots / self.step_s(self.slots)

    @property
    def prefill_tokens_per_s(self) -> float:
        """Tokens of prompts that are read."""
        return 1 / max(self._prefill.slope, 1e-9)

    def learn_step(self, num_requests: float, step_s: float) -> None:
        """A request had a token every ``step_s``, while ``num_requests`` were worked on."""
        self._step.add(min(num_requests, self.slots), step_s)

    def learn_prefill(self, num_tokens: float, seconds: float) -> None:
        """A first token came after ``seconds``, with so many tokens of prompts to be read before it."""
        self._prefill.add(num_tokens, seconds)
