"""What a trial of an engine says about other configurations of it."""

from __future__ import annotations

from dataclasses import asdict
from math import inf

import pytest

from flagvega.serve.batching import Member
from flagvega.serve.curve import Curve
from flagvega.serve.forecast import forecast
from flagvega.serve.traffic import Answered, Lengths, Outcome, Targets, Traffic, draw, fixed, judge
from flagvega.serve.tuning.clients import forecast_clients
from flagvega.serve.tuning.model import Configuration, Form, GuidedByTraffic, Knowledge, Seat, steps_of
from flagvega.serve.tuning.score import NEVER_S, least_s, seconds_per_good
from flagvega.serve.tuning.steps import StepSums, fit_steps
from flagvega.tune.learn import Model
from flagvega.tune.pool import Pool
from flagvega.tune.search import NoHistory
from flagvega.tune.study import Trial

FORM = Form("m", "emu-s")
TRAFFIC = Traffic(Lengths(least=32, most=256), Lengths(least=16, most=48), rate_per_s=3.0, num_requests=60, seed=3)
TARGETS = Targets(1.5, 0.14)
TRUE = (0.085, 0.003, 1 / 2500)


def sums_of(true: tuple[float, float, float]) -> StepSums:
    """As gaps of such steps would give them."""
    rows = [(1.0, float(n), float(p)) for n in (1, 4, 9, 16) for p in (0, 0, 0, 100, 300)]
    gaps = [sum(a * b for a, b in zip(true, row, strict=True)) for row in rows]
    scaled = [tuple(x / gap for x in row) for row, gap in zip(rows, gaps, strict=True)]
    xx = tuple(tuple(sum(row[i] * row[j] for row in scaled) * 1000 for j in range(3)) for i in range(3))
    return StepSums(xx, tuple(sum(row[i] for row in scaled) * 1000 for i in range(3)), 20_000)


def true_s(slots: int, step_tokens: int = 512) -> float:
    base, sequence, prompt = TRUE
    curve = Curve(((1, base + sequence), (256, base + 256 * sequence)), prompt, 0.005, step_tokens)
    requests = draw(TRAFFIC)
    found = forecast([Member(curve, slots)], requests)
    return seconds_per_good(TRAFFIC, TARGETS, judge(TRAFFIC, requests, found.answers, TARGETS, found.duration_s))


def trial(configuration: Configuration, number: int, time_s: float) -> Trial:
    details = {"instances": [{"steps": asdict(sums_of(TRUE)), "cache_tokens": 100_000}]}
    return Trial("ok", key=str(number), point=configuration.point(0).record, number=number, time_s=time_s,
                 details=details)  # fmt: skip


def configurations(slots: tuple[int, ...]) -> list[Configuration]:
    knowledge = Knowledge(TRAFFIC, TARGETS)
    return [Configuration((("max_num_seqs", n),), (Seat(FORM, n, 512),), knowledge) for n in slots]


def test_one_trial_tells_what_the_others_would_do() -> None:
    all_of_them = configurations((4, 8, 12, 16, 48))
    pool = Pool(all_of_them)
    order = GuidedByTraffic(pool, NoHistory(), least_s=least_s(TRAFFIC))
    first = order.next()
    assert first is not None
    assert first.predicted_s is None
    tried = all_of_them[first.index]
    slots = tried.seats[0].slots
    order.learn(first, trial(tried, 1, true_s(slots)))
    second = order.next()
    assert second is not None
    best = min((4, 8, 12, 16, 48), key=true_s)
    assert best in (slots, all_of_them[second.index].seats[0].slots)
    assert second.predicted_s == pytest.approx(true_s(all_of_them[second.index].seats[0].slots), rel=0.1)


def test_nothing_is_expected_to_be_better_than_all_answers_in_time() -> None:
    pool = Pool(configurations((4, 8)))
    order = GuidedByTraffic(pool, NoHistory(), least_s=least_s(TRAFFIC))
    assert order.bound_s() >= 1 / 3.0
    for index in (0, 1):
        pool.drop(index)
    assert order.bound_s() == inf


def test_instances_with_other_degrees_are_expected_to_be_faster_but_not_for_sure() -> None:
    knowledge = Knowledge(TRAFFIC, TARGETS, sums={FORM: sums_of(TRUE)})
    one, two = (Seat(Form("m", "emu-s", tp), 12, 512) for tp in (1, 2))
    time_s, low_s = knowledge.time_s((two,))
    assert time_s < knowledge.time_s((one,))[0]
    assert low_s <= time_s


def test_what_the_simulation_does_not_know_is_learned_by_its_setting() -> None:
    knowledge = Knowledge(TRAFFIC, TARGETS)
    fast, slow = (
        Configuration((("dtype", dtype), ("max_num_seqs", 12)), (Seat(FORM, 12, 512),), knowledge) for dtype in "ab"
    )
    model = Model()
    for number, (each, factor) in enumerate(((fast, 1.0), (slow, 1.3)), 1):
        each.teach(model, 0, trial(each, number, factor * true_s(12)))
    means = [model.step_factor(each.features)[0] for each in (fast, slow)]
    assert means[1] - means[0] > 0.15


def test_clients_that_wait_for_their_answers_are_never_more_than_they_are() -> None:
    base, sequence, prompt = TRUE
    curve = Curve(((1, base + sequence), (256, base + 256 * sequence)), prompt)
    requests = draw(Traffic(fixed(64), fixed(20), concurrency=4, num_requests=24))
    answers, duration_s = forecast_clients([Member(curve, 8), Member(curve, 2)], requests, 4)
    assert len(answers) == 24
    ends = sorted(each.begun_s + each.took_s for each in answers)
    for each in answers:
        in_flight = sum(other.begun_s <= each.begun_s < other.begun_s + other.took_s - 1e-9 for other in answers)
        assert in_flight <= 4
    assert duration_s == pytest.approx(ends[-1])
    more, shorter_s = forecast_clients([Member(curve, 8), Member(curve, 8)], requests, 16)
    assert len(more) == 24
    assert shorter_s < duration_s


def outcome(*answers: Answered) -> Outcome:
    requests = draw(Traffic(fixed(1), fixed(2), rate_per_s=2.0, num_requests=len(answers)))
    return judge(Traffic(fixed(1), fixed(2), rate_per_s=2.0), requests, answers, Targets(1.0, 0.1), 10.0)


@pytest.mark.parametrize(
    ("answers", "expected_s"),
    [
        ((Answered(0, 0.5, 0.55, 1, 2), Answered(0, 0.9, 0.95, 1, 2)), 0.5),
        ((Answered(0, 0.5, 0.55, 1, 2), Answered(0, 0, 0, 1, 0, "lost")), 1.0),
        ((Answered(0, 2.0, 2.05, 1, 2), Answered(0, 2.0, 2.05, 1, 2)), 10.0),
        ((Answered(0, 4.0, 4.05, 1, 2), Answered(0, 4.0, 4.05, 1, 2)), 20.0),
        ((Answered(0, 0, 0, 1, 0, "lost"),), NEVER_S),
    ],
)
def test_late_answers_count_little_and_the_later_the_less(answers: tuple[Answered, ...], expected_s: float) -> None:
    traffic = Traffic(fixed(1), fixed(2), rate_per_s=2.0)
    assert seconds_per_good(traffic, Targets(1.0, 0.1), outcome(*answers)) == pytest.approx(expected_s)


def test_unlike_chips_in_one_trial_teach_each_its_own_steps() -> None:
    knowledge = Knowledge(TRAFFIC, TARGETS)
    fast, slow = Form("m", "emu-l"), Form("m", "emu-s")
    both = Configuration((), (Seat(fast, 16, 512), Seat(slow, 8, 512)), knowledge)
    true = {fast: (0.04, 0.0006, 1 / 12000), slow: TRUE}
    told = [{"steps": asdict(sums_of(true[seat.form])), "cache_tokens": None} for seat in both.seats]
    knowledge.learn(both, Trial("ok", key="1", point={}, number=1, time_s=1.0, details={"instances": told}))
    for form, expected in true.items():
        assert fit_steps(knowledge.sums[form]) == pytest.approx(expected, rel=0.05)


def test_an_instance_is_taught_by_what_it_answered_itself_and_not_by_half_a_request() -> None:
    answers = [Answered(0.1 * i, 0.05, 0.45, 8, 9, gaps_s=(0.05,) * 8, instance=str(i % 2)) for i in range(10)]
    seats = (Seat(FORM, 16, 512), Seat(FORM, 16, 512), Seat(FORM, 16, 512, "decode"))
    assert [sums.num for sums in steps_of(seats, answers)] == [40, 40, 0]
    assert [sums.num for sums in steps_of(seats[:1], answers)] == [80]
