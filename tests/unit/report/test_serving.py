"""The page of a serving run."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

from flagvega.report.serving import (
    KEPT,
    History,
    InstanceRow,
    ServingPage,
    gateway_values,
    instance_values,
    serving_page,
)


def record(number: int, tokens: float, **more: Any) -> dict[str, Any]:
    spread = {"p50": 0.1, "p99": 0.5}
    total = {"num_requests": 4, "num_output_tokens": 90, "num_prompt_tokens": 20, "output_tokens_per_s": tokens,
             "first_token_s": spread, "per_token_s": None, "prefix_share": 0.5}  # fmt: skip
    return {"id": number, "state": "ready", "restarts": 0, "running": 2, "waiting": 1, "kv_share": 0.2,
            "output_tokens_per_s": tokens, "first_token_s": spread, "total": total, **more}  # fmt: skip


def page(state: str = "serving", num: int = 3) -> ServingPage:
    engines, clients = History(), History()
    for i in range(num):
        engines.add(1000.0 + 5 * i, 5.0, instance_values([record(0, 40.0 + i), record(1, 10.0)]))
        spread = {"p50": 0.2, "p99": 0.9}
        row = {"in_flight": 5, "output_tokens_per_s": 50.0, "first_token_s": spread, "per_token_s": None}
        clients.add(1001.0 + 5 * i, 5.0, gateway_values(row))
    rows = [
        InstanceRow(0, "m", "emu-l", "both", "http://h:1", record(0, 41.0)),
        InstanceRow(1, "m", "emu<s>", "both", "http://h:2", record(1, 9.0, state="starting", trouble="slow & old")),
    ]
    events = [(1000.0, "instance 0", "start")]
    return ServingPage("shop", state, "http://h:8080", 990.0, 1020.0, rows, engines, clients, 3, events)


def body(text: str) -> ET.Element:
    """It must be well formed."""
    return ET.fromstring(text[text.index("<body>") : text.index("</body>") + 7].replace("&nbsp;", " "))


def test_the_page_shows_instances_and_curves_and_what_happened() -> None:
    text = serving_page(page())
    found = body(text)
    titles = [each.text for each in found.iter("h2")]
    assert titles == [
        "Tokens written", "Queue", "Time to the first token", "KV cache in use", "Instances", "What happened",
    ]  # fmt: skip
    lines = [each.find("title").text for each in found.iter("polyline")]  # type: ignore[union-attr]
    assert "instance 0: tokens written, last 42 tokens per second" in lines
    assert "clients: 99 %, last 900 milliseconds" in lines
    assert "8 requests answered, 180 tokens written, 40 tokens of prompts read" in text
    assert "starting: slow &amp; old" in text
    assert "<script" not in text
    assert "emu&lt;s&gt;" in text


def test_a_page_that_goes_on_loads_itself_again() -> None:
    assert "refresh" in serving_page(page())
    assert "refresh" not in serving_page(page("stopped"))


def test_a_long_history_gets_coarser_and_loses_no_peak() -> None:
    history = History()
    for i in range(10 * KEPT):
        peak = 9.0 if i == 777 else 1.0
        history.add(float(i), 1.0, {"first_token_s_p99 0": peak, "running 0": float(i % 2)})
    assert len(history.rows) <= 2 * KEPT
    assert max(value for _, value in history.curve("first_token_s_p99", "0")) == 9.0
    assert sum(row.seconds for row in history.rows) == 10 * KEPT
    assert abs(history.curve("running", "0")[0][1] - 0.5) < 1e-9


def test_a_page_without_records_says_where_instances_are() -> None:
    empty = ServingPage(
        "shop", "failed", None, 0.0, 1.0,
        [InstanceRow(0, "m", "cpu", "prefill", "http://h:1", {"id": 0, "state": "failed"})],
        History(), History(), 0, [],
    )  # fmt: skip
    text = serving_page(empty)
    assert "prefill" in text
    assert "failed after 0:00:01" in text


def test_what_is_looked_at_first_stands_first_while_the_run_goes_on() -> None:
    tiles = next(each for each in body(serving_page(page())).iter("div") if each.get("class") == "tiles")
    shown = [(each.find("b").text, each.find("span").text) for each in tiles]  # type: ignore[union-attr]
    assert shown == [
        ("1 of 2", "instances ready"), ("52", "tokens/s written"), ("4", "requests at work"),
        ("200 ms", "to the first token (99 %: 900 ms)"),
    ]  # fmt: skip
    assert 'class="tiles"' not in serving_page(page("stopped"))
