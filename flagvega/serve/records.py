"""What a serving run writes down of itself: its instances, its gateway, what happened."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from flagvega.records import read_json, read_json_lines, read_last_json_line

FOLDER: Final = "serve"
INSTANCE_FILE: Final = "instances.jsonl"
"""A line every few seconds: what each engine says of itself."""
STATUS_FILE: Final = "gateway.json"
RECORD_FILE: Final = "gateway.jsonl"
"""A line every few seconds: what the gateway and its clients saw."""
PAGE: Final = "report/serve.html"
FRESH_S: Final = 30.0
"""A gateway that has written nothing for so long knows nothing."""


def read_serving(run_dir: Path, since: float) -> dict[str, Any] | None:
    """The last record of the run that began then; None where it serves nothing, or has not written any."""
    last = read_last_json_line(run_dir / FOLDER / INSTANCE_FILE)
    return last if last and last["time"] >= since else None


def read_gateway(run_dir: Path) -> dict[str, Any] | None:
    """The status of the run's gateway; None where it has none."""
    try:
        status: dict[str, Any] = read_json(run_dir / FOLDER / STATUS_FILE)
    except FileNotFoundError:
        return None
    return status


def read_traffic(run_dir: Path) -> dict[str, Any] | None:
    """The last record of the run's gateway; None where it has none."""
    return read_last_json_line(run_dir / FOLDER / RECORD_FILE)


def is_ejected(run_dir: Path, instance: int | None) -> bool:
    """Whether the run's gateway, if it has one, gets no answers from an instance."""
    status = read_gateway(run_dir)
    if status is None:
        return False
    states = {each["id"]: each["state"] for each in status["instances"]}
    return time.time() - status["time"] < FRESH_S and states.get(instance) == "ejected"


def list_events(run_dir: Path, instances: Iterable[int], since: float) -> list[tuple[float, str, str]]:
    """(unix s, who, what) of all that happened to instances and the gateway."""
    files = {f"instance {i}": run_dir / "events" / f"rank-{i}.jsonl" for i in instances}
    files["gateway"] = run_dir / "events" / "gateway.jsonl"
    found = [
        (event["time"], "the run" if event.get("of_run") else who, _event(event))
        for who, file in files.items()
        for event in read_json_lines(file)
        if event["time"] >= since
    ]
    return sorted(found)


def _event(event: Mapping[str, Any]) -> str:
    words = [event["event"]]
    if "seconds" in event:
        words.append(f"after {event['seconds']:g} s")
    if event.get("reason"):
        words.append(str(event["reason"]).partition("\n")[0])
    return ", ".join(words)
