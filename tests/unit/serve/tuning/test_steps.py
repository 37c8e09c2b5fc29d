"""The steps of an engine, from the tokens that its clients saw."""

from __future__ import annotations

import pytest

from flagvega.serve.traffic import Answered, Lengths, Traffic, draw
from flagvega.serve.tuning.steps import TYPICAL, StepSums, fit_steps, sum_steps

BASE, SEQUENCE, PROMPT = 0.04, 0.0006, 1 / 12000


def answers_of(
    rate: float, num: int, slots: int = 16, step_tokens: int = 100_000, longest: int = 256
) -> list[Answered]:
    """What an engine gives whose steps take what is said above, token by token."""
    requests = draw(
        Traffic(Lengths(least=32, most=longest), Lengths(least=16, most=64), rate_per_s=rate, num_requests=num)
    )
    times: list[list[float]] = [[] for _ in requests]
    left = [request.input_tokens for request in requests]
    waiting, running, now_s = list(range(num)), list[int](), 0.0
    while waiting or running:
        if not running:
            now_s = max(now_s, requests[waiting[0]].at_s)
        giving, room, num_read = [i for i in running if not left[i]], step_tokens, 0
        room -= len(giving)
        running += (new := [i for i in waiting if requests[i].at_s <= now_s][: slots - len(running)])
        waiting = [i for i in waiting if i not in new]
        reading = []
        for i in [i for i in running if left[i]]:
            if taken := min(left[i], room - num_read):
                reading.append(i)
                left[i], num_read = left[i] - taken, num_read + taken
        now_s += BASE + SEQUENCE * (len(giving) + len(reading)) + PROMPT * num_read
        for i in [*giving, *(i for i in reading if not left[i])]:
            times[i].append(now_s)
        running = [i for i in running if len(times[i]) < requests[i].output_tokens]
    found = []
    for request, moments in zip(requests, times, strict=True):
        gaps = tuple(b - a for a, b in zip(moments, moments[1:], strict=False))
        first_s, took_s = moments[0] - request.at_s, moments[-1] - request.at_s
        found.append(Answered(request.at_s, first_s, took_s, request.input_tokens, len(moments), "", gaps))
    return found


def test_the_steps_of_an_engine_are_found_in_its_answers() -> None:
    base, sequence, prompt = fit_steps(sum_steps(answers_of(6.0, 60)))
    assert base == pytest.approx(BASE, rel=0.05)
    assert sequence == pytest.approx(SEQUENCE, rel=0.25)
    assert prompt == pytest.approx(PROMPT, rel=0.25)


@pytest.mark.parametrize(("rate", "slots"), [(2.0, 16), (6.0, 16), (6.0, 4), (12.0, 48)])
def test_prompts_that_take_several_steps_are_in_all_of_them(rate: float, slots: int) -> None:
    answers = answers_of(rate, 60, slots, step_tokens=128, longest=900)
    base, sequence, prompt = fit_steps(sum_steps(answers, 128, slots))
    assert base == pytest.approx(BASE, rel=0.05)
    assert sequence == pytest.approx(SEQUENCE, rel=0.25)
    assert prompt == pytest.approx(PROMPT, rel=0.1)


def test_sums_of_two_loads_tell_as_much_as_one_of_both() -> None:
    one, other = sum_steps(answers_of(2.0, 30)), sum_steps(answers_of(8.0, 60))
    base, sequence, _ = fit_steps(one + other)
    assert (one + other).num == one.num + other.num
    assert base == pytest.approx(BASE, rel=0.05)
    assert sequence == pytest.approx(SEQUENCE, rel=0.25)


def test_tokens_that_come_at_once_do_not_mislead() -> None:
    answers = answers_of(6.0, 60)
    spoilt = answers[20]
    gaps = (spoilt.gaps_s[0] + spoilt.gaps_s[1], 1e-7, *spoilt.gaps_s[2:])
    answers[20] = Answered(spoilt.begun_s, spoilt.first_token_s, spoilt.took_s, spoilt.input_tokens,
                           spoilt.output_tokens, "", gaps)  # fmt: skip
    assert fit_steps(sum_steps(answers))[0] == pytest.approx(BASE, rel=0.1)


def test_where_nothing_came_nothing_is_learned() -> None:
    failed = [Answered(0.0, 0.0, 0.0, 10, 0, "refused")]
    assert sum_steps(failed) == StepSums()
    assert fit_steps(StepSums()) == pytest.approx(TYPICAL)
