"""How long answers are expected to be: as long as they usually are, or as they may be, whichever held better lately."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

USUAL_TOKENS: Final = 256.0
"""Of an answer that nothing is known about yet."""
KEPT: Final = 0.95
"""Weight of what was known before, at each new answer."""


@dataclass
class Lengths:
    """Answers of one model."""

    usual: float = USUAL_TOKENS
    share: float = 1.0
    """Of what they were limited to."""
    usual_error: float = 1.0
    share_error: float = 1.0

    def expect(self, limit: int | None) -> float:
        """Tokens of an answer that is limited to ``limit``, if it is."""
        if limit is None:
            return self.usual
        return limit * self.share if self.share_error <= self.usual_error else min(limit, self.usual)

    def learn(self, limit: int | None, length: float) -> None:
        """An answer had ``length`` tokens."""
        if limit is not None:
            self.usual_error = _mix(self.usual_error, abs(min(limit, self.usual) - length))
            self.share_error = _mix(self.share_error, abs(limit * self.share - length))
            self.share = _mix(self.share, length / limit)
        self.usual = _mix(self.usual, length)


def _mix(before: float, now: float) -> float:
    return KEPT * before + (1 - KEPT) * now


UNKNOWN: Final = Lengths()
