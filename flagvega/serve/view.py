"""How a serving run is told to a person: its gateway, and each of its instances."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from flagvega.records import read_json
from flagvega.report.planning import seconds
from flagvega.serve.records import PAGE, read_gateway, read_serving, read_traffic

OLD_S: Final = 15.0
"""A record older than this says little about now."""
_TIMES: Final = {"first_token_s": "first token", "per_token_s": "per token"}


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
        found[name] = f"{told}{places.get(row['id'], '')}: {_of_engine(row, is_running)}".removeprefix(": ")
    if is_running and (age := time.time() - record["time"]) > OLD_S:
        found["note"] = f"its last record is {age:.0f} s old"
    if (run_dir / PAGE).exists():
        found["page"] = str(run_dir / PAGE)
    return found


def show_gateway(run_dir: Path) -> dict[str, str]:
    """How a run's gateway does, by its last record; empty when it has none."""
    status = read_gateway(run_dir)
    if status is None:
        return {}
    instances = status["instances"]
    ready = sum(each["state"] == "ready" for each in instances)
    found = {"gateway": f"{status['state']} at {status['url']}/v1, {ready} of {len(instances)} instances ready"}
    last = read_traffic(run_dir)
    if last and status["state"] != "ended":
        found["requests"] = f"{last['requests_per_s']:.1f}/s, {last['in_flight']} in flight, {last['refused']} refused"
        found["tokens"] = f"{last['prompt_tokens_per_s']:.0f}/s read, {last['output_tokens_per_s']:.0f}/s written"
        found |= dict(_times(last))
        found |= {f"instance {each['id']}": _of_gateway(each) for each in last["instances"]}
    return found


def _places(run_dir: Path) -> dict[int, str]:
    """Where each instance is."""
    try:
        instances: Sequence[Mapping[str, Any]] = read_json(run_dir / "plan.json")["decisions"]["instances"]
    except (FileNotFoundError, KeyError):
        return {}
    found = {}
    for each in instances:
        role = "" if each.get("role", "both") == "both" else f" ({each['role']})"
        host = f" of {each['address']}" if each.get("address") else ""
        found[each["id"]] = f"{each['service']}{role} on {each['chip']} {' '.join(map(str, each['devices']))}{host}"
    return found


def _of_gateway(record: Mapping[str, Any]) -> str:
    """What the gateway says of an instance."""
    if record["state"] != "ready":
        return _state(record)
    chip = f" on {record['chip']}" if record["chip"] else ""
    load = f"{record['requests_in_flight']} in flight, {record['requests_waiting']} waiting"
    able = f"can {record['decode_tokens_per_second']:.0f}/s"
    return f"ready{chip}, {load}, {record['output_tokens_per_s']:.0f} tokens/s ({able})"


def _of_engine(row: Mapping[str, Any], is_running: bool) -> str:
    """What an engine says of itself."""
    words = [_state(row)] if is_running or row["state"] == "failed" else []
    words += [f"started again {row['restarts']} times"] if row["restarts"] else []
    if total := row.get("total"):
        if is_running:
            words.append(f"{row.get('running', 0):.0f} running, {row.get('waiting', 0):.0f} waiting")
            words.append(f"{row['output_tokens_per_s']:.0f} tokens/s")
            words += [f"KV cache {row['kv_share']:.0%} full"] if "kv_share" in row else []
        words.append(f"{total['num_requests']} requests, {total['num_output_tokens']} tokens in all")
        words += [f"{name} {spread}" for name, spread in _times(total)]
    return ", ".join(words) or "nothing was recorded"


def _state(row: Mapping[str, Any]) -> str:
    return f"{row['state']}: {row['trouble']}".removesuffix(": ")


def _times(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is told of how fast answers came: (name, median and 99 %)."""
    for key, name in _TIMES.items():
        if spread := record[key]:
            yield name, f"{seconds(spread['p50'])} (99 %: {seconds(spread['p99'])})"
