"""The ways that a request can take: through one instance, or through one that reads and one that writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from flagvega.config.spec import Role
from flagvega.serve.gateway.instance import Forecast

HANDED_TOKENS: Final = 1.0
"""Of a prompt that another instance has read, what is left to read."""


class Able(Protocol):
    """What can be part of a way: an instance, or what stands for one in a simulation."""

    picked_at: float

    @property
    def role(self) -> Role:
        """What it does of a request."""

    def forecast(self, prompt_tokens: float, output_tokens: float, width: int, now: float) -> Forecast:
        """When a request would have its first token and its last."""

    def next_step_s(self, width: int) -> float:
        """Seconds of a step with so many sequences more than it has."""


One = TypeVar("One", bound=Able)


@dataclass(frozen=True)
class Route(Generic[One]):
    """Who answers a request."""

    writer: One
    """Writes the answer."""
    tokens: float
    """Of the prompt, that it reads itself."""
    reader: One | None = None
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
class Load(Generic[One]):
    """What a request is, as expected."""

    unread: Callable[[One], float]
    """Tokens of its prompt that an instance has not seen before."""
    output_tokens: float
    width: int
    is_single: bool
    """Whether it may be split."""


def find_routes(able: Sequence[One], load: Load[One], now: float) -> Iterator[tuple[Route[One], Forecast]]:
    """Every way through these instances that their roles allow, and when it would give its tokens.

    Where roles allow none, an instance that reads and one that writes do all of it: better than nothing.
    """
    alone = [each for each in able if each.role == "both"]
    has_pairs = load.is_single and any(_may_pair(reader, writer) for reader in able for writer in able)
    if not alone and not has_pairs:
        alone = [each for each in able if each.role == "decode"] or list(able)
    for each in alone:
        tokens = load.unread(each)
        yield Route(each, tokens), each.forecast(tokens, load.output_tokens, load.width, now)
    if has_pairs:
        yield from _pairs(able, load, now)


def _pairs(able: Sequence[One], load: Load[One], now: float) -> Iterator[tuple[Route[One], Forecast]]:
    writings = [
        (writer, writer.forecast(HANDED_TOKENS, load.output_tokens, load.width, now), writer.next_step_s(load.width))
        for writer in able
        if writer.role != "prefill"
    ]
    for reader in able:
        if reader.role == "decode":
            continue
        tokens = load.unread(reader)
        reading = reader.forecast(tokens, 1, 1, now)
        for writer, writing, step_s in writings:
            if _may_pair(reader, writer):
                first_s = max(reading.first_s + step_s, writing.first_s)
                begin_s = max(reading.finish_s + step_s, writing.first_s)
                finish_s = begin_s + writing.finish_s - writing.first_s
                yield Route(writer, HANDED_TOKENS, reader, tokens), Forecast(first_s, finish_s)


def _may_pair(reader: Able, writer: Able) -> bool:
    return reader.role != "decode" and writer.role != "prefill" and (reader.role, writer.role) != ("both", "both")
