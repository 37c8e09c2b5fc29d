"""The answers of a load, as its trial keeps them."""

from __future__ import annotations

import json

import pytest

from flagvega.serve.traffic import Answered
from flagvega.serve.tuning.answers import answers_of_json, answers_to_json


def test_answers_are_read_as_they_were_written_to_half_a_millisecond() -> None:
    gaps = tuple(0.0404 + 0.0001 * i for i in range(100))
    written = [
        Answered(0.2504, 0.1, 0.1 + sum(gaps), 64, 101, gaps_s=gaps, instance="1"),
        Answered(0.3, 0.05, 0.05, 8, 1),
        Answered(0.4, 0.05, 0.09, 8, 3, gaps_s=(0.04,)),  # two tokens came at once
        Answered(0.5, 0.0, 0.0, 8, 0, "503"),
    ]
    found = answers_of_json(json.loads(json.dumps(answers_to_json(written))))
    for before, after in zip(written, found, strict=True):
        assert (after.input_tokens, after.output_tokens) == (before.input_tokens, before.output_tokens)
        assert (after.error, after.instance) == (before.error, before.instance)
        assert after.begun_s + after.took_s == pytest.approx(before.begun_s + before.took_s, abs=0.0006)
        assert after.gaps_s == pytest.approx(before.gaps_s, abs=0.0011)
