"""What a set of instances makes of clients that each wait for their answer before they ask again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

from flagvega.serve.batching import Engine, Member
from flagvega.serve.forecast import TOO_LONG
from flagvega.serve.traffic import Answered, Request

MOMENT_S = 1e-9


def forecast_clients(
    members: Sequence[Member], requests: Sequence[Request], num_clients: int
) -> tuple[tuple[Answered, ...], float]:
    """(answers, seconds until the last) of requests of which so many are in flight, each followed by the next."""
    engines = [Engine(member) for member in members]
    told = [0] * len(engines)
    begun: dict[int, float] = {}
    answers: dict[int, Answered] = {}
    waiting = iter(enumerate(requests))
    end_s = 0.0

    def ask(now_s: float) -> None:
        if (following := next(waiting, None)) is not None:
            i, request = following[0], replace(following[1], at_s=now_s)
            begun[i] = now_s
            given, wanted = request.input_tokens, request.output_tokens
            min(engines, key=lambda each: each.forecast(given, wanted, 1, now_s).finish_s).take(i, request)

    for _ in range(num_clients):
        ask(0.0)
    while working := [engine for engine in engines if engine.num_requests]:
        engine = min(working, key=lambda each: each.now_s)
        engine.run(engine.now_s + MOMENT_S)
        j = engines.index(engine)
        for job, last_s in engine.done[told[j] :]:
            request, at_s, late_s = requests[job.index], begun[job.index], engine.curve.overhead_s
            if last_s == inf:
                answers[job.index] = Answered(at_s, 0.0, 0.0, request.input_tokens, 0, TOO_LONG)
            else:
                first_s, took_s = (moment - at_s + late_s for moment in (job.first_s, last_s))
                answers[job.index] = Answered(at_s, first_s, took_s, request.input_tokens, request.output_tokens)
            now_s = engine.now_s if last_s == inf else last_s + late_s
            end_s = max(end_s, now_s)
            ask(now_s)
        told[j] = len(engine.done)
    return tuple(answers[i] for i in sorted(answers)), end_s
