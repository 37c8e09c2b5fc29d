"""The schedule as it runs: an event simulation of 1F1B, and bounds that it never undercuts.

Times of stage s: ``f`` forward, ``b`` backward (recompute included), ``c`` one way over boundary s, ``k`` micro-batches
in flight. Stages compute one thing at a time; each direction of a boundary carries one message at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Pipeline:
    """One step of one plan, in seconds."""

    forward: tuple[float, ...]
    backward: tuple[float, ...]
    transfer: tuple[float, ...]
    """One entry fewer than stages."""
    in_flight: tuple[int, ...]
    num_micro_batches: int
    reduction: tuple[float, ...]
    """What of a stage's gradient reduction is left after its last backward pass."""
    optimizer: tuple[float, ...]

    @property
    def num_stages(self) -> int:
        """Stages."""
        return len(self.forward)


@dataclass(frozen=True)
class Simulated:
    """What a simulation found."""

    total_s: float
    finish_s: tuple[float, ...]
    """When each stage's last backward pass ends."""
    events: tuple[tuple[int, str, int, float, float], ...] = ()
    """(stage, ``F`` or ``B``, micro-batch, begin, end), when asked for."""
    messages: tuple[tuple[int, str, int, float, float], ...] = ()
    """(boundary, ``F`` onwards or ``B`` back, micro-batch, begin, end), when asked for."""
    chunks: tuple[int, ...] = ()
    """The chunk of every event, where stages have several."""


def simulate(pipeline: Pipeline, with_events: bool = False) -> Simulated:
    """Run the schedule: warm-up forwards, then one forward and one backward in turn, then the backwards left."""
    num, m = pipeline.num_stages, pipeline.num_micro_batches
    f, b, c = pipeline.forward, pipeline.backward, pipeline.transfer
    warm_up = [min(limit - 1, m) for limit in pipeline.in_flight]
    last = num - 1
    arrived_f: list[list[float]] = [[] for _ in range(num)]
    arrived_b: list[list[float]] = [[] for _ in range(num)]
    arrived_f[0] = [0.0] * m
    clock, link_f, link_b = [0.0] * num, [0.0] * num, [0.0] * num
    done_f, done_b = [0] * num, [0] * num
    events: list[tuple[int, str, int, float, float]] = []
    messages: list[tuple[int, str, int, float, float]] = []
    waiting = list(range(num - 1, -1, -1))
    while waiting:
        s = waiting.pop()
        now, forwards, backwards = clock[s], done_f[s], done_b[s]
        in_f, in_b = arrived_f[s], arrived_b[s]
        moved_f = moved_b = False
        while backwards < m:
            if forwards < m and forwards - backwards <= warm_up[s]:
                if len(in_f) <= forwards:
                    break
                begin = max(now, in_f[forwards])
                now = begin + f[s]
                if s < last:
                    link_f[s] = max(now, link_f[s]) + c[s]
                    arrived_f[s + 1].append(link_f[s])
                    moved_f = True
                else:
                    in_b.append(now)
                if with_events:
                    events.append((s, "F", forwards, begin, now))
                    if s < last:
                        messages.append((s, "F", forwards, link_f[s] - c[s], link_f[s]))
                forwards += 1
            else:
                if len(in_b) <= backwards:
                    break
                begin = max(now, in_b[backwards])
                now = begin + b[s]
                if s > 0:
                    link_b[s] = max(now, link_b[s]) + c[s - 1]
                    arrived_b[s - 1].append(link_b[s])
                    moved_b = True
                if with_events:
                    events.append((s, "B", backwards, begin, now))
                    if s > 0:
                        messages.append((s - 1, "B", backwards, link_b[s] - c[s - 1], link_b[s]))
                backwards += 1
        clock[s], done_f[s], done_b[s] = now, forwards, backwards
        if moved_b:
            waiting.append(s - 1)
        if moved_f:
            waiting.append(s + 1)
    end = max(finish + left for finish, left in zip(clock, pipeline.reduction, strict=True))
    return Simulated(end + max(pipeline.optimizer), tuple(clock), tuple(events), tuple(messages))


def period_s(pipeline: Pipeline) -> float:
    """Seconds per micro-batch in the steady state.

    The micro-batch that stage ``s`` starts when it has ``k_s`` in flight comes back over ``u`` as many as
    ``k_s - k_u + 1`` later; a link carries one message at a time.
    """
    worst = max(pipeline.transfer, default=0.0)
    for s in range(pipeline.num_stages):
        loop = 0.0
        for u in range(s, pipeline.num_stages):
            loop += pipeline.forward[u] + pipeline.backward[u]
            worst = max(worst, loop / (pipeline.in_flight[s] - pipeline.in_flight[u] + 1))
            if u + 1 < pipeline.num_stages:
                loop += 2 * pipeline.transfer[u]
    return worst


def simple_bound_s(times: Sequence[float], transfer: Sequence[float], num_micro_batches: int) -> float:
    """``max_s (m t_s + sum over j < s of (t_j + 2 c_j))``: what no schedule of these stages undercuts."""
    before, worst = 0.0, 0.0
    for s, time in enumerate(times):
        worst = max(worst, num_micro_batches * time + before)
        if s < len(transfer):
            before += time + 2 * transfer[s]
    return worst


def num_loops(num_micro_batches: int, in_flight: int, step: int) -> int:
    """How often a stage waits for a loop of ``step`` micro-batches while it has forwards left."""
    return (num_micro_batches - 1 - in_flight) // step + 1 if num_micro_batches > in_flight else 0


def lower_bound_s(pipeline: Pipeline) -> float:
    """What the simulation never undercuts: the loops of :func:`period_s`, followed through the whole step.

    For ``s <= u``: the first micro-batch reaches the end and comes back to ``s``; then, as long as forwards are
    left, every ``k_s - k_u + 1`` micro-batches take at least the loop; then ``s`` has backwards left; then
    the last gradient goes down to stage 0, which has its own gradients to reduce. Or: after the first backward of
    ``s`` a forward and a backward for each micro-batch but the last ``k_s``, then the last one's way to the end and
    back.
    """
    f, b, c, k = pipeline.forward, pipeline.backward, pipeline.transfer, pipeline.in_flight
    m, num = pipeline.num_micro_batches, pipeline.num_stages
    times = [x + y for x, y in zip(f, b, strict=True)]
    worst = simple_bound_s(times, c, m)
    round_s = sum(times) + 2 * sum(c)
    before = 0.0
    for s in range(num):
        if m > k[s]:
            worst = max(worst, 2 * round_s - before + (m - 1 - k[s]) * times[s])
        loop = 0.0
        for u in range(s, num):
            loop += times[u]
            step = k[s] - k[u] + 1
            loops = num_loops(m, k[s], step)
            worst = max(worst, round_s + loops * loop + (m - 1 - loops * step) * b[s])
            if u + 1 < num:
                loop += 2 * c[u]
        if s + 1 < num:
            before += times[s] + 2 * c[s]
    return worst + pipeline.reduction[0] + max(pipeline.optimizer)
