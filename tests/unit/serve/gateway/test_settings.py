from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flagvega.errors import ConfigError
from flagvega.serve.__main__ import main
from flagvega.serve.gateway.settings import check_settings, read_settings

ONE = {"instances": [{"id": 0, "url": "http://127.0.0.1:8000"}]}


def test_nothing_but_instances_must_be_said_and_only_this_machine_may_connect() -> None:
    settings = check_settings(ONE, "g")
    assert (settings.host, settings.api_key_env, settings.instances[0].slots) == ("127.0.0.1", None, 256)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], ["expected a mapping"]),
        ({}, ["'g.instances' is missing"]),
        ({"instances": []}, ["there is none"]),
        (ONE | {"hots": 1, "port": 99999}, ["did you mean 'host'", "99999 is too large"]),
        (
            {"instances": [{"id": 0, "url": "localhost:80"}, {"id": 0, "url": "http://a"}]},
            ["no server's address", "two"],
        ),
        (ONE | {"api_key_env": "NOT_THERE"}, ["the environment has no NOT_THERE"]),
    ],
)
def test_every_fault_is_told_at_once(value: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        check_settings(value, "g", {})
    assert all(word in str(caught.value) for word in words)


def test_a_file_that_is_none_or_no_json_ends_the_gateway_with_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(tmp_path / "none.json")]) == 2
    (tmp_path / "bad.json").write_text("{")
    assert main(["--config", str(tmp_path / "bad.json")]) == 2
    assert "not JSON" in capsys.readouterr().err
    (tmp_path / "good.json").write_text(json.dumps(ONE))
    assert read_settings(tmp_path / "good.json").port == 8080
