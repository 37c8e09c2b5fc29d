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
    found, told = _gateway(run_dir)
    record = read_serving(run_dir, since)
    places = _places(run_dir)
    engines = {int(row["id"]): _of_engine(row, is_running) for row in record["instances"]} if record else {}
    for number in sorted(engines | told):
        state, load, rest = engines.get(number, ("", "", ""))
        # A gateway knows more about who waits, an engine about itself.
        words = [*([told[number]] if number in told else [state, load]), rest]
        place = places.get(number, "")
        found[f"instance {number}"] = f"{place}: {', '.join(filter(None, words))}".removeprefix(": ")
    if record and is_running and (age := time.time() - record["time"]) > OLD_S:
        found["note"] = f"its last record is {age:.0f} s old"
    if (run_dir / PAGE).exists():
        found["page"] = str(run_dir / PAGE)
    return found


def _gateway(run_dir: Path) -> tuple[dict[str, str], dict[int, str]]:
    """How a run's gateway does, by its last record, and what it says of each instance."""
    status = read_gateway(run_dir)
    if status is None:
        return {}, {}
    if status["state"] == "ended":
        return {"gateway": f"ended; it was at {status['url']}/v1"}, {}
    instances = status["instances"]
    ready = sum(each["state"] == "ready" for each in instances)
    found = {"gateway": f"{status['state']} at {status['url']}/v1, {ready} of {len(instances)} instances ready"}
    last = read_traffic(run_dir)
    if not last:
        return found, {}
    found["requests"] = f"{last['requests_per_s']:.1f}/s, {last['in_flight']} in flight, {last['refused']} refused"
    found["tokens"] = f"{last['prompt_tokens_per_s']:.0f}/s read, {last['output_tokens_per_s']:.0f}/s written"
    return found | dict(_times(last)), {int(each["id"]): _of_gateway(each) for each in last["instances"]}


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
    load = f"{record['requests_in_flight']} in flight, {record['requests_waiting']} waiting"
    able = f"can {record['decode_tokens_per_second']:.0f}"
    return f"ready, {load}, {record['output_tokens_per_s']:.0f} tokens/s ({able})"


def _of_engine(row: Mapping[str, Any], is_running: bool) -> tuple[str, str, str]:
    """What an engine says of itself: its state, what it is doing, and the rest."""
    state = _state(row) if is_running or row["state"] == "failed" else ""
    words = [f"started again {row['restarts']} times"] if row["restarts"] else []
    load = ""
    if total := row.get("total"):
        if is_running and "running" in row:
            load = f"{row.get('running', 0):.0f} running, {row.get('waiting', 0):.0f} waiting, "
            load += f"{row['output_tokens_per_s']:.0f} tokens/s"
            words += [f"KV cache {row['kv_share']:.0%} full"] if "kv_share" in row else []
        words.append(f"{total['num_requests']} requests, {total['num_output_tokens']} tokens in all")
        words += [f"{name} {spread}" for name, spread in _times(total)]
    return state, load, ", ".join(words) or ("" if state else "nothing was recorded")


def _state(row: Mapping[str, Any]) -> str:
    return f"{row['state']}: {row['trouble']}".removesuffix(": ")


def _times(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is told of how fast answers came: (name, median and 99 %)."""
    for key, name in _TIMES.items():
        if spread := record[key]:
            yield name, f"{seconds(spread['p50'])} (99 %: {seconds(spread['p99'])})"
