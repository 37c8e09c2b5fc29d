from __future__ import annotations

from pathlib import Path

from flagvega.records import append_json_line, write_json
from flagvega.serve.gateway.fleet import Fleet
from flagvega.serve.gateway.metrics import Metrics
from flagvega.serve.gateway.settings import InstanceSettings, Settings
from flagvega.serve.view import show_serving


def test_a_run_without_a_gateway_shows_none(tmp_path: Path) -> None:
    assert show_serving(tmp_path, 0.0, is_running=True) == {}


def test_the_last_record_is_shown(tmp_path: Path) -> None:
    fleet = Fleet(Settings((InstanceSettings(0, "http://a", "emu-l"), InstanceSettings(1, "http://b"))))
    fleet.instances[0].admit(("m",), None)
    fleet.instances[1].trouble = "refused"
    metrics = Metrics(fleet)
    metrics.answered(fleet.instances[0], 200, 10, 20)
    metrics.timed(fleet.instances[0], 0.25, 0.04)
    (tmp_path / "serve").mkdir()
    instances = [{"state": each.state} for each in fleet.instances]
    write_json(tmp_path / "serve" / "gateway.json", {"state": "ready", "url": "http://c", "instances": instances})
    assert list(show_serving(tmp_path, 0.0, is_running=True)) == ["gateway"]
    append_json_line(tmp_path / "serve" / "gateway.jsonl", metrics.record())
    shown = show_serving(tmp_path, 0.0, is_running=True)
    assert shown["gateway"] == "ready at http://c/v1, 1 of 2 instances ready"
    assert shown["first token"] == "250 ms (99 %: 250 ms)"
    assert shown["per token"] == "40 ms (99 %: 40 ms)"
    assert shown["instance 0"].startswith("ready, 0 in flight")
    assert shown["instance 1"] == "starting: refused"
    assert b"flagvega_decode_tokens_per_second" in metrics.text()
