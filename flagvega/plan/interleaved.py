"""The interleaved schedule as megatron-core 0.16 runs it: the order of passes, and an event simulation.

Stages are visited several times: chunk ``i`` of stage ``s`` is part ``i p + s`` of the model. Micro-batches go in
groups of ``p`` through one chunk after the other. Passes of the warm-up and of the end wait for their messages;
between them messages go while a stage computes. A message starts when both ends are there for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from flagvega.plan.simulate import Pipeline, Simulated, period_s, simulate

Message = tuple[str, int, int]
"""``F`` or ``B``, the part of the model that takes it, micro-batch."""
Step = tuple[str, Message]
"""``F`` or ``B``: a pass, by its (direction, part, micro-batch); ``post`` or ``wait``: a message."""


@dataclass(frozen=True)
class Interleaved(Pipeline):
    """One step of one interleaved plan; ``forward`` and ``backward`` are sums over a stage's chunks."""

    chunk_forward: tuple[tuple[float, ...], ...] = ()
    """By stage, then chunk."""
    chunk_backward: tuple[tuple[float, ...], ...] = ()
    wrap_s: float = 0.0
    """One way from the last stage to the first."""

    @property
    def num_chunks(self) -> int:
        """Chunks of every stage."""
        return len(self.chunk_forward[0])


def order(num_stages: int, num_chunks: int, num_micro_batches: int) -> list[tuple[int, int]]:
    """(micro-batch, chunk) of every forward pass of a stage; backward passes count chunks from the end."""
    return [
        (first + i, chunk)
        for first in range(0, num_micro_batches, num_stages)
        for chunk in range(num_chunks)
        for i in range(num_stages)
    ]


def num_warm_up(stage: int, num_stages: int, num_chunks: int, num_micro_batches: int) -> int:
    """Forward passes of a stage before its first backward pass, but one."""
    wanted = 2 * (num_stages - stage - 1) + (num_chunks - 1) * num_stages
    return min(wanted, num_chunks * num_micro_batches)


@lru_cache(maxsize=4096)
def held_chunks(stage: int, num_stages: int, num_chunks: int, num_micro_batches: int) -> tuple[tuple[int, ...], ...]:
    """How many micro-batches a stage holds of each chunk at once: all such counts that no other reaches in every chunk.

    Two groups of micro-batches more than the warm-up show all there are.
    """
    num = min(num_micro_batches, 4 * num_stages)
    table = order(num_stages, num_chunks, num)
    warm_up = num_warm_up(stage, num_stages, num_chunks, num)
    counts, seen = [0] * num_chunks, dict[tuple[int, ...], None]()
    for k, (_, chunk) in enumerate(table):
        counts[chunk] += 1
        seen[tuple(counts)] = None
        if k >= warm_up:
            counts[num_chunks - 1 - table[k - warm_up][1]] -= 1
    found = list(seen)
    return tuple(
        one for one in found
        if not any(other != one and all(x >= y for x, y in zip(other, one, strict=True)) for other in found)
    )  # fmt: skip


def program(stage: int, num_stages: int, num_chunks: int, num_micro_batches: int) -> Iterator[Step]:
    """What a stage does, in order."""
    table = order(num_stages, num_chunks, num_micro_batches)
    total, last = len(table), num_stages * num_chunks - 1
    warm_up = num_warm_up(stage, num_stages, num_chunks, num_micro_batches)
    left = total - warm_up

    def forward(k: int) -> Message:
        micro_batch, chunk = table[k]
        return "F", chunk * num_stages + stage, micro_batch

    def backward(k: int) -> Message:
        micro_batch, chunk = table[k]
        return "B", (num_chunks - 1 - chunk) * num_stages + stage, micro_batch

    def input_of(k: int) -> list[Message]:
        return [forward(k)] if k < total and forward(k)[1] > 0 else []

    def gradient_of(k: int) -> list[Message]:
        return [backward(k)] if k < total and backward(k)[1] < last else []

    def sent(done: Message) -> list[Message]:
        kind, part, micro_batch = done
        to = part + 1 if kind == "F" else part - 1
        return [(kind, to, micro_batch)] if 0 <= to <= last else []

    def post(*messages: Message) -> Iterator[Step]:
        return (("post", message) for message in messages)

    def wait(*messages: Message) -> Iterator[Step]:
        return (("wait", message) for message in messages)

    yield from (*post(*input_of(0)), *wait(*input_of(0)))
    for k in range(warm_up):
        yield "F", forward(k)
        moved = sent(forward(k)) + input_of(k + 1)
        yield from (*post(*moved), *wait(*moved))
    yield from post(*gradient_of(0))
    sent_f: list[Message] = []
    sent_b: list[Message] = []
    for k in range(left):
        yield from wait(*input_of(k + warm_up))
        yield "F", forward(k + warm_up)
        now = sent(forward(k + warm_up))
        yield from (*post(*now, *input_of(k + warm_up + 1)), *wait(*sent_f))
        sent_f = now
        yield from wait(*gradient_of(k))
        yield "B", backward(k)
        now = sent(backward(k))
        yield from (*post(*now, *gradient_of(k + 1)), *wait(*sent_b))
        sent_b = now
    for k in range(left, total):
        yield from wait(*gradient_of(k))
        yield "B", backward(k)
        moved = sent(backward(k)) + gradient_of(k + 1)
        yield from (*post(*moved), *wait(*moved))
    yield from wait(*sent_b)


def simulate_interleaved(pipeline: Interleaved, with_events: bool = False) -> Simulated:
    """Run the programs of all stages."""
    num, v, m = pipeline.num_stages, pipeline.num_chunks, pipeline.num_micro_batches
    durations = (*pipeline.transfer, pipeline.wrap_s)
    programs = [program(stage, num, v, m) for stage in range(num)]
    steps: list[Step | None] = [next(its) for its in programs]
    clock = [0.0] * num
    posted: dict[Message, float] = {}
    arrived: dict[Message, float] = {}
    free: dict[tuple[str, int], float] = {}
    events: list[tuple[int, str, int, float, float]] = []
    messages: list[tuple[int, str, int, float, float]] = []
    chunks: list[int] = []
    waiting = list(range(num))
    while waiting:
        stage = waiting.pop()
        while step := steps[stage]:
            what, message = step
            kind, part, micro_batch = message
            if what == "wait":
                if message not in arrived:
                    break
                clock[stage] = max(clock[stage], arrived[message])
            elif what != "post":
                times = pipeline.chunk_forward if what == "F" else pipeline.chunk_backward
                begin = clock[stage]
                clock[stage] = begin + times[stage][part // num]
                if with_events:
                    events.append((stage, what, micro_batch, begin, clock[stage]))
                    chunks.append(part // num)
            elif message in posted:
                before = part - 1 if kind == "F" else part
                link = kind, before % num
                begin = max(posted.pop(message), clock[stage], free.get(link, 0.0))
                arrived[message] = free[link] = begin + durations[before % num]
                if with_events:
                    messages.append((before % num, kind, micro_batch, begin, arrived[message]))
                other = part - 1 if kind == "F" else part + 1
                waiting += [end for end in (part % num, other % num) if end != stage]
            else:
                posted[message] = clock[stage]
            steps[stage] = next(programs[stage], None)
    end = max(at + rest for at, rest in zip(clock, pipeline.reduction, strict=True))
    return Simulated(end + max(pipeline.optimizer), tuple(clock), tuple(events), tuple(messages), tuple(chunks))


def interleaved_bound_s(pipeline: Interleaved) -> float:
    """What the simulation never undercuts: a stage computes all its passes, the first of them after the first
    chunks of the stages before it, and the gradient of its last goes back through these."""
    worst, before = 0.0, 0.0
    for stage in range(pipeline.num_stages):
        busy = pipeline.num_micro_batches * (pipeline.forward[stage] + pipeline.backward[stage])
        worst = max(worst, before + busy)
        if stage + 1 < pipeline.num_stages:
            before += pipeline.chunk_forward[stage][0] + pipeline.chunk_backward[stage][0]
            before += 2 * pipeline.transfer[stage]
    return worst + max(pipeline.optimizer)


def run_schedule(pipeline: Pipeline, with_events: bool = False) -> Simulated:
    """Simulate whichever schedule a pipeline has."""
    if isinstance(pipeline, Interleaved):
        return simulate_interleaved(pipeline, with_events)
    return simulate(pipeline, with_events)


def schedule_period_s(pipeline: Pipeline) -> float:
    """Seconds per micro-batch in the steady state."""
    if not isinstance(pipeline, Interleaved):
        return period_s(pipeline)
    times = [x + y for x, y in zip(pipeline.forward, pipeline.backward, strict=True)]
    links = [pipeline.num_chunks * transfer_s for transfer_s in pipeline.transfer]
    return max(*times, *links, (pipeline.num_chunks - 1) * pipeline.wrap_s)
