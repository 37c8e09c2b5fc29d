from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flagvega.errors import ConfigError
from flagvega.serve.curve import (
    Handover,
    Level,
    Reading,
    Row,
    ServeProfile,
    curve_of,
    passing_of,
    profile_to_json,
    read_serve_profile,
)
from flagvega.serve.measure import level_numbers, reading_lengths

ROW = Row(
    "m", "emu-l", (Level(1, 0.04), Level(4, 0.046), Level(8, 0.05)), (Reading(100, 0.055), Reading(500, 0.095)),
    model="model", arguments={"max_num_batched_tokens": 1024}, cache_tokens=9000,
)  # fmt: skip


def test_a_step_is_between_those_that_were_measured_and_goes_on_beyond_them() -> None:
    curve = curve_of(ROW)
    assert curve.step_s(1) == 0.04
    assert curve.step_s(6) == pytest.approx(0.048)
    assert curve.step_s(12) == pytest.approx(0.054)


def test_prompts_cost_what_longer_ones_took_more() -> None:
    curve = curve_of(ROW)
    assert curve.prompt_token_s == pytest.approx(0.0001)
    assert curve.overhead_s == pytest.approx(0.005)
    assert curve.step_s(1, 300) == pytest.approx(0.07)
    assert (curve.step_tokens, curve.cache_tokens) == (1024, 9000)


def test_a_profile_is_read_as_it_was_written(tmp_path: Path) -> None:
    profile = ServeProfile((ROW,), "vllm", "2026-01-01")
    file = tmp_path / "p.json"
    file.write_text(json.dumps(profile_to_json(profile)))
    assert read_serve_profile(file) == profile


def test_handing_over_is_what_a_first_token_took_beside_the_step_that_gave_it() -> None:
    readings = (Reading(100, 0.04 + 0.003 + 0.001), Reading(500, 0.04 + 0.003 + 0.005))
    profile = ServeProfile((ROW,), handovers=(Handover("model", "emu-l", "emu-l", readings),))
    passing = passing_of(profile, "model")
    assert passing
    assert passing.seconds(1000) == pytest.approx(0.013)
    assert passing_of(profile, "another") is None


def broken(**changes: Any) -> dict[str, Any]:
    document = profile_to_json(ServeProfile((ROW,)))
    row = {**json.loads(json.dumps(document["instances"][0])), **changes}
    return {**document, "instances": [row]}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"schema": 2, "kind": "serve-profile"}, "schema 1"),
        ({"layers": []}, "no profile of services"),
        (broken(levels=[]), "no levels"),
        (broken(levels=[{"sequences": 4, "step_s": 0.1}, {"sequences": 1, "step_s": 0.1}]), "do not rise"),
        (broken(levels=[{"sequences": 1, "step_s": 0.0}]), "not above 0"),
        (broken(levels=[{"sequences": "many", "step_s": 0.1}]), "sequences"),
        (broken(speed=3), "unknown key 'speed'"),
    ],
)
def test_what_is_wrong_with_a_profile_is_told(tmp_path: Path, document: dict[str, Any], words: str) -> None:
    file = tmp_path / "p.json"
    file.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="p.json") as caught:
        read_serve_profile(file)
    assert words in str(caught.value)


def test_levels_double_up_to_all_slots_and_prompts_fit() -> None:
    assert level_numbers(1) == [1]
    assert level_numbers(24) == [1, 2, 4, 8, 16, 24]
    assert level_numbers(32) == [1, 2, 4, 8, 16, 32]
    assert reading_lengths(128, 2048) == [8, 32, 64, 127]
    assert reading_lengths(None, 2048)[-1] == 2048
