"""Looks at the instances of a run from time to time: a line of ``serve/instances.jsonl``, and the run's page.

What an engine says of itself (its ``/metrics``) is there with and without a gateway; what clients see, only the gateway
knows, and writes down itself.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from flagvega.records import Lines, append_json_line, write_text
from flagvega.report.serving import History, InstanceRow, ServingPage, gateway_values, instance_values, serving_page
from flagvega.serve.probe import fetch_text
from flagvega.serve.records import FOLDER, INSTANCE_FILE, PAGE, RECORD_FILE, list_events
from flagvega.serve.scrape import Scrape, add, describe, gauges, parse, rise

EVERY_S: Final = 5.0
SCRAPE_S: Final = 2.0
"""An engine that does not answer within this is passed over."""


class Kept(Protocol):
    """What is asked of an instance; the keeper writes it, the observer reads."""

    facts: Mapping[str, Any]
    state: Any
    trouble: str
    restarts: int


@dataclass
class _Seen:
    """What is known of an instance's counters."""

    last: Scrape = field(default_factory=Scrape)
    total: Scrape = field(default_factory=Scrape)
    told: dict[str, Any] = field(default_factory=dict)
    """What was last written of the whole run: it holds as well when the engine has ended, or does not answer."""
    restarts: int = 0


class Observer:
    """All instances of a run, on a thread of its own."""

    def __init__(self, run_dir: Path, name: str, kept: Sequence[Kept], url: str | None) -> None:
        self.run_dir, self.name, self.kept, self.url = run_dir, name, kept, url
        """``url`` is the gateway's, where there is one."""
        self.seen = [_Seen() for _ in kept]
        self.rows: list[dict[str, Any]] = []
        self.engines, self.clients = History(), History()
        self.began = self.looked = time.time()
        self.gateway = Lines(run_dir / FOLDER / RECORD_FILE)
        self.gateway.skip()
        self.refused = 0
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        """Look from now on."""
        self._thread.start()

    def close(self, state: str) -> None:
        """Write the last page; the instances have ended."""
        self._ends.set()
        self._thread.join(timeout=2 * SCRAPE_S * len(self.kept))
        self._try(lambda: self._write(state))

    def _work(self) -> None:
        while not self._ends.wait(EVERY_S):
            self._try(self._look)

    def _try(self, act: Any) -> None:
        """A disk that is full must not end what serves."""
        try:
            act()
        except OSError as error:
            print(f"what the instances do cannot be written down: {error}", file=sys.stderr, flush=True)

    def _look(self) -> None:
        now = time.time()
        seconds, self.looked = now - self.looked, now
        self.rows = [self._row(each, seen, seconds, now) for each, seen in zip(self.kept, self.seen, strict=True)]
        (self.run_dir / FOLDER).mkdir(exist_ok=True)
        record = {"time": now, "seconds": round(seconds, 3), "instances": self.rows}
        append_json_line(self.run_dir / FOLDER / INSTANCE_FILE, record)
        self.engines.add(now, seconds, instance_values(self.rows))
        for row in self.gateway.read():
            self.clients.add(row["time"], row["seconds"], gateway_values(row))
            self.refused = row["refused"]
        self._write("serving" if any(each.state == "ready" for each in self.kept) else "starting")

    def _row(self, each: Kept, seen: _Seen, seconds: float, now: float) -> dict[str, Any]:
        facts = {"id": each.facts["id"], "state": each.state, "trouble": each.trouble, "restarts": each.restarts}
        text = fetch_text(f"{each.facts['url']}/metrics", SCRAPE_S) if each.state == "ready" else None
        if text is None:
            return {**facts, **seen.told}
        scrape, names = parse(text), each.facts.get("metrics", {})
        if each.restarts != seen.restarts:
            seen.restarts, seen.last = each.restarts, Scrape()
        grown, seen.last = rise(seen.last, scrape), scrape
        seen.total = add(seen.total, grown)
        seen.told = {"total": describe(seen.total, now - self.began, names)}
        return {**facts, **gauges(scrape, names), **describe(grown, seconds, names), **seen.told}

    def _write(self, state: str) -> None:
        rows = self.rows or [{"id": each.facts["id"], "state": each.state} for each in self.kept]
        instances = [
            InstanceRow(
                each.facts["id"], each.facts.get("service", ""), each.facts.get("chip", ""),
                each.facts.get("role", "both"), each.facts["url"], row,
            )
            for each, row in zip(self.kept, rows, strict=True)
        ]  # fmt: skip
        events = list_events(self.run_dir, [each.facts["id"] for each in self.kept], self.began)
        page = ServingPage(
            self.name, state, self.url, self.began, time.time(), instances, self.engines, self.clients, self.refused,
            events,
        )  # fmt: skip
        (self.run_dir / PAGE).parent.mkdir(exist_ok=True)
        write_text(self.run_dir / PAGE, serving_page(page))
