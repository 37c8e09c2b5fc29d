from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flagvega.config.report import Report
from flagvega.config.serving import read_services
from flagvega.config.spec import Commands, Runner, Spec, Task
from flagvega.errors import ConfigError
from flagvega.serve.traffic import Answered, Lengths, Request, Targets, Traffic, draw, fixed, judge
from flagvega.serve.traffic_block import read_traffic


def spec(**traffic: Any) -> Spec:
    blocks = {"traffic": traffic} if traffic else {}
    where = {"traffic": "a.yaml:3 traffic"}
    return Spec("s", Path("s"), Task(), Runner(), {}, Commands(), arguments={}, blocks=blocks, where=where)


def test_requests_of_a_seed_are_always_the_same_and_come_at_the_rate() -> None:
    traffic = Traffic(Lengths(least=10, most=20), Lengths(median=50, p99=200), rate_per_s=5, num_requests=2000, seed=3)
    requests = draw(traffic)
    assert requests == draw(traffic)
    assert requests[-1].at_s == pytest.approx(400, rel=0.1)
    assert {each.input_tokens for each in requests} == set(range(10, 21))
    outputs = sorted(each.output_tokens for each in requests)
    assert outputs[1000] == pytest.approx(50, rel=0.1)
    assert outputs[1980] == pytest.approx(200, rel=0.25)
    assert sum(outputs) / 2000 == pytest.approx(traffic.output_tokens.mean, rel=0.1)


def test_lengths_are_drawn_by_their_weights() -> None:
    lengths = Lengths(values=(8, 100), weights=(3.0, 1.0))
    drawn = [each.input_tokens for each in draw(Traffic(lengths, fixed(1), rate_per_s=1, num_requests=1000))]
    assert drawn.count(8) == pytest.approx(750, rel=0.1)
    assert lengths.mean == pytest.approx(31)


def test_goodput_counts_answers_that_meet_every_target() -> None:
    traffic = Traffic(fixed(8), fixed(11), rate_per_s=2, num_requests=4)
    requests = [Request(i / 2, 8, 11) for i in range(4)]
    answers = [
        Answered(0.0, 0.1, 1.1, 8, 11),
        Answered(0.5, 0.9, 1.9, 8, 11),  # its first token is late
        Answered(1.0, 0.1, 3.1, 8, 11),  # slow afterwards
        Answered(1.6, 0.1, 1.0, 8, 0, "503"),
    ]
    outcome = judge(traffic, requests, answers, Targets(first_token_s=0.5, per_token_s=0.2), duration_s=4.1)
    assert (outcome.good_share, outcome.goodput_per_s, outcome.failures) == (0.25, 0.5, 1)
    assert outcome.per_token_s.p50 == pytest.approx(0.1)
    assert outcome.late_s == pytest.approx(0.1)


def test_the_block_says_lengths_in_four_ways() -> None:
    forms = [
        (64, fixed(64)),
        ({"from": 4, "to": 9}, Lengths(least=4, most=9)),
        ({"median": 20, "p99": 90}, Lengths(median=20, p99=90)),
        ({"values": [8, 16], "weights": [1, 3]}, Lengths(values=(8, 16), weights=(1.0, 3.0))),
    ]
    for written, lengths in forms:
        traffic, targets = read_traffic(spec(rate_per_s=3.0, input_tokens=written, targets={"first_token_s": 2}))
        assert traffic.input_tokens == lengths
        assert targets.first_token_s == 2


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ({}, "rate_per_s"),
        ({"rate_per_s": 1.0, "concurrency": 3}, "or a number in flight"),
        ({"rate_per_s": -1.0}, "traffic.rate_per_s"),
        ({"rate_per_s": 1.0, "input_tokens": "long"}, "'long' is no length"),
        ({"rate_per_s": 1.0, "input_tokens": True}, "True is no length"),
        ({"rate_per_s": 1.0, "output_tokens": {"from": 9, "to": 4}}, "no range"),
        ({"rate_per_s": 1.0, "output_tokens": {"form": 9, "to": 40}}, "no range"),
        ({"rate_per_s": 1.0, "output_tokens": {"median": 9, "p99": 4}}, "not above the median"),
        ({"rate_per_s": 1.0, "output_tokens": {"values": [9], "weights": [1, 2]}}, "do not fit"),
        ({"rate_per_s": 1.0, "targets": {"share": 1.5}}, "no share"),
    ],
)
def test_what_is_no_traffic_is_told_with_its_place(written: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_traffic(spec(**written))
    assert words in str(caught.value)
    assert "a.yaml:3" in str(caught.value)


def spec_of_profiles(*profiles: dict[str, Any] | None, **traffic: Any) -> Spec:
    report = Report({})
    entries = [{"serve_id": f"m{i}", "profile": profile} for i, profile in enumerate(profiles)]
    services, _ = read_services(entries, lambda _: {}, report)
    report.raise_faults()
    return replace(spec(**traffic), services=services)


def test_flagscales_benchmark_is_the_traffic_where_there_is_no_other() -> None:
    profile = {"prefix_len": 16, "input_len": 1000, "output_len": 64, "num_prompts": 8, "range_ratio": 0.25}
    traffic, targets = read_traffic(spec_of_profiles(profile, None, profile))
    assert traffic == Traffic(Lengths(least=266, most=1016), Lengths(least=16, most=64), concurrency=8, num_requests=8)
    assert targets == Targets()
    assert read_traffic(spec_of_profiles(profile, rate_per_s=2.0))[0].rate_per_s == 2.0


def test_flagscales_benchmark_has_its_defaults() -> None:
    traffic, _ = read_traffic(spec_of_profiles({"range_ratio": 1}))
    assert traffic == Traffic(Lengths(least=1024, most=1024), Lengths(least=1024, most=1024), None, 200, 200)


@pytest.mark.parametrize(
    ("profiles", "words"),
    [
        ([{"input_length": 9}], "did you mean 'input_len'"),
        ([{"num_prompts": 0}], "serve[0].profile.num_prompts"),
        ([{"range_ratio": 1.5}], "1.5 is no share"),
        ([{"input_len": 9}, {"input_len": 8}], "the profiles of the services differ"),
    ],
)
def test_what_is_no_benchmark_is_told(profiles: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_traffic(spec_of_profiles(*profiles))
    assert words in str(caught.value)
