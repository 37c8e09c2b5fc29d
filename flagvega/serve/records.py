"""What a serving run wrote down of itself, to be shown: its instances, its gateway, what happened."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from flagvega.records import read_json, read_json_lines, read_last_json_line
from flagvega.report.planning import seconds
from flagvega.serve.gateway.records import FOLDER, show_gateway

INSTANCE_FILE: Final = "instances.jsonl"
"""A line every few seconds: what each engine says of itself."""
PAGE: Final = "report/serve.html"
OLD_S: Final = 15.0
"""A record older than this says little about now."""


def read_serving(run_dir: Path, since: float) -> dict[str, Any] | None:
    """The last record of the run that began then; None where it serves nothing, or has not written any."""
    last = read_last_json_line(run_dir / FOLDER / INSTANCE_FILE)
    return last if last and last["time"] >= since else None


def show_serving(run_dir: Path, since: float, is_running: bool) -> dict[str, str]:
    """How the instances of a run do, by name; empty where nothing is served."""
    found, record = show_gateway(run_dir), read_serving(run_dir, since)
    if record is None:
        return found
    places = _places(run_dir)
    for row in record["instances"]:
        name = f"instance {row['id']}"
        # A gateway knows more about who waits, an engine about itself.
        told = f"{found[name]}; " if name in found else ""
        found[name] = f"{told}{places.get(row['id'], '')}: {_instance(row, is_running)}".removeprefix(": ")
    if is_running and (age := time.time() - record["time"]) > OLD_S:
        found["note"] = f"its last record is {age:.0f} s old"
    if (run_dir / PAGE).exists():
        found["page"] = str(run_dir / PAGE)
    return found


def list_events(run_dir: Path, instances: Iterable[int], since: float) -> list[tuple[float, str, str]]:
    """(unix s, who, what) of all that happened to instances and the gateway."""
    files = {f"instance {i}": run_dir / "events" / f"rank-{i}.jsonl" for i in instances}
    files["gateway"] = run_dir / "events" / "gateway.jsonl"
    found = [
        (event["time"], who, _event(event))
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


def _places(run_dir: Path) -> dict[int, str]:
    """Where each instance is."""
    try:
        instances: Sequence[Mapping[str, Any]] = read_json(run_dir / "plan.json")["decisions"]["instances"]
    except (FileNotFoundError, KeyError):
        return {}
    found = {}
    for each in instances:
        role = "" if each.get("role", "both") == "both" else f" ({each['role']})"
        found[each["id"]] = f"{each['service']}{role} on {each['chip']} {' '.join(map(str, each['devices']))}"
    return found


def _instance(row: Mapping[str, Any], is_running: bool) -> str:
    """What an engine says of itself."""
    words = [f"{row['state']}: {row['trouble']}".removesuffix(": ")] if is_running or row["state"] == "failed" else []
    words += [f"started again {row['restarts']} times"] if row["restarts"] else []
    if total := row.get("total"):
        if is_running:
            words.append(f"{row.get('running', 0):.0f} running, {row.get('waiting', 0):.0f} waiting")
            words.append(f"{row['output_tokens_per_s']:.0f} tokens/s")
            words += [f"KV cache {row['kv_share']:.0%} full"] if "kv_share" in row else []
        words.append(f"{total['num_requests']} requests, {total['num_output_tokens']} tokens in all")
        for key, name in (("first_token_s", "first token"), ("per_token_s", "per token")):
            if spread := total[key]:
                words.append(f"{name} {seconds(spread['p50'])} (99 %: {seconds(spread['p99'])})")
    return ", ".join(words) or "nothing was recorded"
