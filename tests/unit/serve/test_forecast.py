"""The forecast against what can be told by hand of engines with continuous batching."""

from __future__ import annotations

import pytest

from flagvega.serve.batching import Engine, Member
from flagvega.serve.curve import Curve, Passing
from flagvega.serve.forecast import REFUSED, TOO_LONG, forecast
from flagvega.serve.traffic import Lengths, Request, Targets, Traffic, draw, fixed, judge

CURVE = Curve(steps=((1, 0.05), (5, 0.09)), prompt_token_s=0.001, overhead_s=0.01, step_tokens=100)


def test_a_request_alone_takes_its_prompt_and_its_steps() -> None:
    (answer,) = forecast([Member(CURVE, 4)], [Request(3.0, 80, 11)]).answers
    assert answer.first_token_s == pytest.approx(0.05 + 0.08 + 0.01)
    assert answer.took_s == pytest.approx(answer.first_token_s + 10 * 0.05)
    assert answer.per_token_s == pytest.approx(0.05)


def test_a_prompt_longer_than_a_step_is_read_in_several() -> None:
    (answer,) = forecast([Member(CURVE, 4)], [Request(0.0, 250, 1)]).answers
    assert answer.first_token_s == pytest.approx(3 * 0.05 + 0.25 + 0.01)


def test_sequences_at_once_share_steps_and_a_prompt_holds_the_others_up() -> None:
    first, second = forecast([Member(CURVE, 4)], [Request(0.0, 10, 5), Request(0.075, 90, 2)]).answers
    # Steps of the first end at 0.06 and 0.11; then both are in a step of 0.06 + 0.09.
    assert second.first_token_s == pytest.approx(0.11 + 0.15 - 0.075 + 0.01)
    assert first.took_s == pytest.approx(0.11 + 0.15 + 0.06 + 0.05 + 0.01)


def test_who_finds_no_slot_waits_for_one() -> None:
    first, second = forecast([Member(CURVE, 1)], [Request(0.0, 10, 3), Request(0.0, 10, 3)]).answers
    assert second.first_token_s == pytest.approx(first.took_s + 0.06)


def test_a_gateway_sends_most_to_the_faster_and_refuses_what_would_wait() -> None:
    slow = Curve(((1, 0.2),), 0.004, step_tokens=100)
    traffic = Traffic(fixed(20), fixed(20), rate_per_s=8, num_requests=400)
    patient = forecast([Member(CURVE, 4), Member(slow, 4)], draw(traffic))
    hasty = forecast([Member(CURVE, 4), Member(slow, 4)], draw(traffic), patience_s=1.0)
    assert patient.shares[0].num_requests > 2 * patient.shares[1].num_requests > 0
    assert not any(answer.error for answer in patient.answers)
    refused = [answer for answer in hasty.answers if answer.error == REFUSED]
    assert len(refused) == hasty.places.count(-1) > 10
    targets = Targets(first_token_s=1.5)
    met = [sum(answer.meets(targets) for answer in found.answers) for found in (patient, hasty)]
    assert met[0] < met[1]
    assert patient.shares[0].sequences == pytest.approx(4, abs=0.3)


def test_a_full_cache_has_the_last_one_begin_anew() -> None:
    curve = Curve(((1, 0.05),), 0.001, step_tokens=1000, cache_tokens=100)
    found = forecast([Member(curve, 4)], [Request(0.0, 40, 30), Request(0.0, 40, 30)])
    assert found.shares[0].num_preempted > 0
    assert [answer.error for answer in found.answers] == ["", ""]
    assert found.answers[1].took_s > found.answers[0].took_s + 10 * 0.05


def test_what_never_fits_the_cache_has_no_answer() -> None:
    curve = Curve(((1, 0.05),), 0.001, cache_tokens=100)
    long, short = forecast([Member(curve, 4)], [Request(0.0, 140, 3), Request(0.1, 20, 3)]).answers
    assert (long.error, short.error) == (TOO_LONG, "")


def test_nothing_is_left_in_the_cache_of_an_engine_that_is_done() -> None:
    engine = Engine(Member(Curve(((1, 0.05), (8, 0.1)), 0.001, step_tokens=64, cache_tokens=500), 6))
    requests = draw(Traffic(Lengths(least=5, most=120), Lengths(least=1, most=60), rate_per_s=5, num_requests=300))
    for i, request in enumerate(requests):
        engine.run(request.at_s)
        engine.take(i, request)
    engine.run(float("inf"))
    assert len(engine.done) == 300
    assert engine.num_preempted > 0
    assert (engine.cached, engine.num_requests) == (0, 0)


def test_minutes_of_traffic_are_the_same_whether_steps_are_taken_one_by_one() -> None:
    """Alike steps are taken at once: looking every few milliseconds in between must change nothing."""
    traffic = Traffic(Lengths(least=5, most=90), Lengths(least=2, most=60), rate_per_s=4, num_requests=200)
    requests = draw(traffic)
    whole = forecast([Member(CURVE, 5)], requests)
    engine, moment = Engine(Member(CURVE, 5)), 0.0
    for i, request in enumerate(requests):
        while moment < request.at_s:
            engine.run(moment)
            moment += 0.004
        engine.run(request.at_s)
        engine.take(i, request)
    engine.run(float("inf"))
    ends = {job.index: last_s for job, last_s in engine.done}
    for i, answer in enumerate(whole.answers):
        assert answer.begun_s + answer.took_s == pytest.approx(ends[i] + CURVE.overhead_s)


def test_outcomes_of_forecasts_are_judged_like_measured_ones() -> None:
    traffic = Traffic(fixed(20), fixed(10), rate_per_s=2, num_requests=200)
    found = forecast([Member(CURVE, 4)], draw(traffic))
    outcome = judge(traffic, draw(traffic), found.answers, Targets(1.0, 0.2), found.duration_s)
    assert (outcome.good_share, outcome.failures, outcome.late_s) == (1.0, 0, 0.0)
    assert outcome.output_tokens_per_s == pytest.approx(20, rel=0.1)


# ---- one reads, one writes ----


def test_a_pair_takes_the_prompt_of_the_one_and_the_steps_of_the_other() -> None:
    writer = Curve(steps=((1, 0.02),), prompt_token_s=0.1, overhead_s=0.5)
    members = [Member(CURVE, 4, "prefill"), Member(writer, 4, "decode")]
    found = forecast(members, [Request(1.0, 80, 11)], passing=Passing(0.003, 0.0001))
    (answer,) = found.answers
    read_s, handed_s = 0.05 + 0.08 + 0.01, 0.003 + 80 * 0.0001
    assert answer.first_token_s == pytest.approx(read_s + handed_s + 0.02 + 0.1)  # the last token is the writer's
    assert answer.took_s == pytest.approx(answer.first_token_s + 10 * 0.02)
    assert found.places == (1,)
    assert [share.num_requests for share in found.shares] == [1, 1]


def test_no_prompt_is_read_between_the_tokens_of_who_writes() -> None:
    traffic = Traffic(fixed(90), fixed(20), rate_per_s=3, num_requests=200)
    targets = Targets(per_token_s=0.1)
    met = []
    for roles in (("both", "both"), ("prefill", "decode")):
        found = forecast([Member(CURVE, 5, role) for role in roles], draw(traffic))
        met.append(sum(answer.meets(targets) for answer in found.answers))
        assert not any(answer.error for answer in found.answers)
    assert met[0] < 170 < met[1] == 200


def test_an_instance_without_a_role_is_taken_alone_or_for_a_part() -> None:
    slow = Curve(((1, 0.2),), 0.002, step_tokens=100)
    members = [Member(slow, 4, "prefill"), Member(CURVE, 3), Member(CURVE, 3, "decode")]
    requests = draw(Traffic(Lengths(least=5, most=120), Lengths(least=1, most=60), rate_per_s=5, num_requests=300))
    found = forecast(members, requests)
    assert {*found.places} == {1, 2}
    assert sum(share.num_requests for share in found.shares) > 300
    assert not any(answer.error for answer in found.answers)


def test_who_waits_to_be_read_holds_a_place_at_who_writes() -> None:
    requests = [Request(0.0, 90, 40), Request(0.0, 90, 40), Request(0.0, 90, 40)]
    members = [Member(CURVE, 4, "prefill"), Member(CURVE, 2, "decode")]
    patient = forecast(members, requests)
    assert not any(answer.error for answer in patient.answers)
    assert forecast(members, requests, patience_s=1.0).answers[2].error == REFUSED


def test_a_prompt_that_no_reader_holds_has_no_answer() -> None:
    small = Curve(((1, 0.05),), 0.001, cache_tokens=100)
    found = forecast([Member(small, 4, "prefill"), Member(CURVE, 4, "decode")], [Request(0, 140, 3), Request(0, 9, 3)])
    assert [answer.error for answer in found.answers] == [TOO_LONG, ""]
