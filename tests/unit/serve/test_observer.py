"""What the observer of a run writes down, in front of servers that say what they do."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flagvega.records import append_json_line, read_json_lines, write_json
from flagvega.serve.observer import Observer
from flagvega.serve.records import PAGE, read_serving
from flagvega.serve.view import show_serving

NAMES = {"running": "e:running", "requests": "e:done_total", "output_tokens": "e:tokens_total"}


@dataclass
class Instance:
    facts: dict[str, Any]
    state: str = "ready"
    trouble: str = ""
    restarts: int = 0


@dataclass
class Engine:
    """A server of ``/metrics``."""

    text: str = ""
    server: ThreadingHTTPServer = field(init=False)

    def __post_init__(self) -> None:
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(engine.text.encode())

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def instance(self, number: int) -> Instance:
        url = f"http://127.0.0.1:{self.server.server_address[1]}"
        return Instance({"id": number, "url": url, "service": "m", "chip": "emu-l", "metrics": NAMES})

    def says(self, done: int, tokens: int) -> None:
        self.text = f'e:running{{a="b"}} 2\ne:done_total {done}\ne:tokens_total {tokens}\n'


@pytest.fixture
def engine() -> Iterator[Engine]:
    found = Engine()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "events").mkdir()
    place = {"id": 0, "service": "m", "chip": "emu-l", "devices": [3], "role": "both"}
    write_json(tmp_path / "plan.json", {"decisions": {"instances": [place]}})
    return tmp_path


def test_each_look_is_a_line_and_a_page(engine: Engine, run_dir: Path) -> None:
    observer = Observer(run_dir, "shop", [engine.instance(0)], None)
    began = observer.began
    append_json_line(run_dir / "events" / "rank-0.jsonl", {"time": time.time(), "event": "serving", "seconds": 7.0})
    lost = {"time": time.time(), "event": "host_b_lost", "reason": "3 of 4 are left", "of_run": True}
    append_json_line(run_dir / "events" / "rank-0.jsonl", lost)
    for done, tokens in ((3, 30), (5, 70)):
        engine.says(done, tokens)
        observer._look()
    first, second = read_json_lines(run_dir / "serve" / "instances.jsonl")
    assert [row["instances"][0]["num_requests"] for row in (first, second)] == [3, 2]
    assert second["instances"][0]["total"]["num_output_tokens"] == 70
    shown = show_serving(run_dir, began, is_running=True)
    assert shown["instance 0"].startswith("m on emu-l 3: ready, 2 running, 0 waiting, ")
    assert "5 requests, 70 tokens in all" in shown["instance 0"]
    page = (run_dir / PAGE).read_text()
    assert "5 requests answered, 70 tokens written" in page
    assert "<td>instance 0</td><td>serving, after 7 s" in page
    assert "<td>the run</td><td>host_b_lost, 3 of 4 are left" in page
    assert 'http-equiv="refresh"' in page
    observer._ends.set()
    observer._write("stopped")
    assert 'http-equiv="refresh"' not in (run_dir / PAGE).read_text()


def test_an_engine_that_is_not_there_is_said_to_be_so(engine: Engine, run_dir: Path) -> None:
    engine.says(3, 30)
    starting = Instance({"id": 1, "url": "http://127.0.0.1:9"}, "starting", "connection refused")
    observer = Observer(run_dir, "shop", [engine.instance(0), starting], "http://127.0.0.1:1")
    observer._look()
    record = read_serving(run_dir, observer.began)
    assert record is not None
    assert "total" in record["instances"][0]
    assert record["instances"][1] == {"id": 1, "state": "starting", "trouble": "connection refused", "restarts": 0}
    assert show_serving(run_dir, observer.began, is_running=True)["instance 1"] == "starting: connection refused"


def test_what_an_engine_did_is_still_told_when_it_has_ended(engine: Engine, run_dir: Path) -> None:
    observer = Observer(run_dir, "shop", [engine.instance(0)], None)
    engine.says(3, 30)
    observer._look()
    engine.server.shutdown()
    engine.server.server_close()
    observer._look()
    observer._write("stopped")
    assert "3 requests answered, 30 tokens written" in (run_dir / PAGE).read_text()
    shown = show_serving(run_dir, observer.began, is_running=True)
    assert shown["instance 0"] == "m on emu-l 3: ready, 3 requests, 30 tokens in all"
    assert "3 requests, 30 tokens in all" in show_serving(run_dir, observer.began, is_running=False)["instance 0"]


def test_what_a_former_run_wrote_is_not_shown(engine: Engine, run_dir: Path) -> None:
    observer = Observer(run_dir, "shop", [engine.instance(0)], None)
    observer._look()
    assert read_serving(run_dir, time.time() + 1) is None
    assert "instance 0" not in show_serving(run_dir, time.time() + 1, is_running=True)


def test_an_engine_that_was_started_again_counts_on(engine: Engine, run_dir: Path) -> None:
    instance = engine.instance(0)
    observer = Observer(run_dir, "shop", [instance], None)
    engine.says(10, 100)
    observer._look()
    instance.restarts = 1
    engine.says(12, 130)
    observer._look()
    assert observer.rows[0]["total"]["num_requests"] == 22
