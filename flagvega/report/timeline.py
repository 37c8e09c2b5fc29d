"""The predicted step as spans of time: what every picture of a plan is drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, log10
from typing import Literal

from flagvega.plan.interleaved import run_schedule
from flagvega.plan.simulate import Pipeline

Kind = Literal["forward", "backward", "transfer", "reduction", "optimizer"]
COLOURS: dict[Kind, str] = {
    "forward": "#4e86d8",
    "backward": "#f0a63c",
    "transfer": "#a56fce",
    "reduction": "#2f9e8f",
    "optimizer": "#c9566d",
}
"""Told apart by colour-blind eyes too, on light and on dark ground."""


@dataclass(frozen=True)
class Span:
    """Something that takes time, on a stage or (a transfer) over the boundary behind it."""

    kind: Kind
    stage: int
    begin_s: float
    end_s: float
    micro_batch: int | None = None
    back: bool = False
    """Of a transfer: of gradients, back."""
    chunk: int | None = None
    """Of a pass, where stages have several."""
    next_stage: int | None = None
    """Of a transfer: what is behind the boundary."""

    @property
    def words(self) -> str:
        """What it is, for somebody who points at it."""
        if self.kind == "transfer":
            ends = (self.next_stage, self.stage) if self.back else (self.stage, self.next_stage)
            return f"transfer of micro-batch {self.micro_batch}, stage {ends[0]} to {ends[1]}"
        what = self.kind if self.micro_batch is None else f"{self.kind} of micro-batch {self.micro_batch}"
        which = "" if self.chunk is None else f", chunk {self.chunk}"
        return f"stage {self.stage}, {what}{which}"


@dataclass(frozen=True)
class Lane:
    """A stage and where it is."""

    mesh: int
    chip: str
    note: str = ""
    """What else to say of it, where there is room."""


@dataclass(frozen=True)
class Timeline:
    """One step, spans in order of their begin."""

    lanes: tuple[Lane, ...]
    idle: tuple[float, ...]
    """Share of the step in which each stage computes nothing."""
    spans: tuple[Span, ...]
    total_s: float
    num_micro_batches: int

    @property
    def is_ring(self) -> bool:
        """Whether the last stage sends to the first, for stages have several chunks."""
        return any(span.kind == "transfer" and span.next_stage == 0 for span in self.spans)


def make_timeline(lanes: tuple[Lane, ...], pipeline: Pipeline, idle: tuple[float, ...]) -> Timeline:
    """Simulate once more, this time keeping what happens."""
    simulated = run_schedule(pipeline, with_events=True)
    kinds: dict[str, Kind] = {"F": "forward", "B": "backward"}
    chunks = simulated.chunks or [None] * len(simulated.events)
    spans = [
        Span(kinds[kind], stage, begin, end, i, chunk=chunk)
        for (stage, kind, i, begin, end), chunk in zip(simulated.events, chunks, strict=True)
    ]
    num = len(lanes)
    spans += [
        Span("transfer", at, begin, end, i, kind == "B", next_stage=(at + 1) % num)
        for at, kind, i, begin, end in simulated.messages
    ]
    step_s = simulated.total_s - max(pipeline.optimizer)
    for stage, finish_s in enumerate(simulated.finish_s):
        spans.append(Span("reduction", stage, finish_s, finish_s + pipeline.reduction[stage]))
        spans.append(Span("optimizer", stage, step_s, step_s + pipeline.optimizer[stage]))
    seen = sorted((span for span in spans if span.end_s > span.begin_s), key=lambda span: (span.begin_s, span.stage))
    return Timeline(lanes, idle, tuple(seen), simulated.total_s, pipeline.num_micro_batches)


@dataclass(frozen=True)
class Window:
    """A part of the step that is shown."""

    begin_s: float
    end_s: float
    spans: tuple[Span, ...]


def windows(timeline: Timeline, max_spans: int) -> tuple[Window, ...]:
    """The whole step where it has at most so many spans, else its beginning and its end with half of them each."""
    spans, half = timeline.spans, max_spans // 2
    if len(spans) <= max_spans:
        return (Window(0.0, timeline.total_s, spans),)
    head_s, tail_s = spans[half].begin_s, spans[-half].begin_s
    parts = ((0.0, head_s), (tail_s, timeline.total_s))
    return tuple(
        Window(begin, end, tuple(span for span in spans if span.begin_s < end and span.end_s > begin))
        for begin, end in parts
    )


def picture_windows(timeline: Timeline) -> tuple[Window, ...]:
    """What a picture shows: no more than can be told apart."""
    return windows(timeline, min(max(200 * len(timeline.lanes), 400), 12_000))


def unit_of(duration_s: float) -> tuple[str, float]:
    """The unit for an axis of that length, and how many of it a second has."""
    if duration_s >= 2:
        return "s", 1.0
    return ("ms", 1e3) if duration_s >= 2e-3 else ("\N{MICRO SIGN}s", 1e6)


def ticks(begin: float, end: float, most: int) -> list[float]:
    """Round numbers from ``begin`` to ``end``, at most so many and one."""
    least = (end - begin) / most
    power = 10.0 ** floor(log10(least))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
    first = -(-begin // step)
    return [(first + i) * step for i in range(most + 2) if (first + i) * step <= end * (1 + 1e-9)]
