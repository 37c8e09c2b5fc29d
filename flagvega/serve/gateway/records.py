"""What the gateway wrote down of itself, to be shown."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from flagvega.records import read_json, read_last_json_line

FOLDER: Final = "serve"
STATUS_FILE: Final = "gateway.json"
RECORD_FILE: Final = "gateway.jsonl"
FRESH_S: Final = 30.0
"""A gateway that has written nothing for so long knows nothing."""


def show_gateway(run_dir: Path) -> dict[str, str]:
    """How a run's gateway does, by its last record; empty when it has none."""
    try:
        status = read_json(run_dir / FOLDER / STATUS_FILE)
    except FileNotFoundError:
        return {}
    instances = status["instances"]
    ready = sum(each["state"] == "ready" for each in instances)
    found = {"gateway": f"{status['state']} at {status['url']}/v1, {ready} of {len(instances)} instances ready"}
    last = read_last_json_line(run_dir / FOLDER / RECORD_FILE)
    if last and status["state"] != "ended":
        found["requests"] = f"{last['requests_per_s']:.1f}/s, {last['in_flight']} in flight, {last['refused']} refused"
        found["tokens"] = f"{last['prompt_tokens_per_s']:.0f}/s read, {last['output_tokens_per_s']:.0f}/s written"
        found |= {name: _spread(last[key]) for key, name in _TIMES.items() if last[key]}
        found |= {f"instance {each['id']}": _instance(each) for each in last["instances"]}
    return found


def is_ejected(run_dir: Path, instance: int | None) -> bool:
    """Whether the run's gateway, if it has one, gets no answers from an instance."""
    try:
        status = read_json(run_dir / FOLDER / STATUS_FILE)
    except FileNotFoundError:
        return False
    states = {each["id"]: each["state"] for each in status["instances"]}
    return time.time() - status["time"] < FRESH_S and states.get(instance) == "ejected"


_TIMES: Final = {"first_token_s": "first token", "per_token_s": "per token"}


def _spread(values: Mapping[str, float]) -> str:
    return f"{1000 * values['p50']:.0f} ms (99 %: {1000 * values['p99']:.0f} ms)"


def _instance(record: Mapping[str, Any]) -> str:
    if record["state"] != "ready":
        return f"{record['state']}: {record['trouble']}".removesuffix(": ")
    chip = f" on {record['chip']}" if record["chip"] else ""
    load = f"{record['requests_in_flight']} in flight, {record['requests_waiting']} waiting"
    able = f"can {record['decode_tokens_per_second']:.0f}/s"
    return f"ready{chip}, {load}, {record['output_tokens_per_s']:.0f} tokens/s ({able})"
