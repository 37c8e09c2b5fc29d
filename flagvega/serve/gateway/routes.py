"""The ways that a request can take: through one instance, or through one that reads and one that writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from flagvega.serve.gateway.instance import Forecast, Instance

HANDED_TOKENS: Final = 1.0
"""Of a prompt that another instance has read, what is left to read."""


@dataclass(frozen=True)
class Route:
    """Who answers a request."""

    writer: Instance
    """Writes the answer."""
    tokens: float
    """Of the prompt, that it reads itself."""
    reader: Instance | None = None
    """Reads the prompt for it."""
    reader_tokens: float = 0.0

    @property
    def picked_at(self) -> float:
        """When one of its instances was last chosen."""
        return max(self.writer.picked_at, self.reader.picked_at if self.reader else 0.0)

    def note_picked(self, now: float) -> None:
        """It was chosen."""
        self.writer.picked_at = now
        if self.reader:
            self.reader.picked_at = now


@dataclass(frozen=True)
class Load:
    """What a request is, as expected."""

    unread: Callable[[Instance], float]
    """Tokens of its prompt that an instance has not seen before."""
    output_tokens: float
    width: int
    is_single: bool
    """Whether it may be split."""


def find_routes(able: Sequence[Instance], load: Load, now: float) -> Iterator[tuple[Route, Forecast]]:
    """Every way through these instances that their roles allow, and when it would give its tokens.

    Where roles allow none, an instance that reads and one that writes do all of it: better than nothing.
    """
    alone = [each for each in able if each.role == "both"]
    pairs = list(_pairs(able)) if load.is_single else []
    if not alone and not pairs:
        alone = [each for each in able if each.role == "decode"] or list(able)
    for each in alone:
        tokens = load.unread(each)
        yield Route(each, tokens), each.forecast(tokens, load.output_tokens, load.width, now)
    for reader, writer in pairs:
        tokens = load.unread(reader)
        reading = reader.forecast(tokens, 1, 1, now)
        writing = writer.forecast(HANDED_TOKENS, load.output_tokens, load.width, now)
        step_s = writer.capacity.step_s(writer.num_sequences + load.width)
        first_s = max(reading.first_s + step_s, writing.first_s)
        finish_s = first_s + writing.finish_s - writing.first_s
        yield Route(writer, HANDED_TOKENS, reader, tokens), Forecast(first_s, finish_s)


def _pairs(able: Sequence[Instance]) -> Iterator[tuple[Instance, Instance]]:
    for reader in able:
        for writer in able:
            if reader.role != "decode" and writer.role != "prefill" and (reader.role, writer.role) != ("both", "both"):
                yield reader, writer
