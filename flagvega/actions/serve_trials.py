"""One trial of a configuration of services: a run in its own folder, under the keeper, with a load put on it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import yaml
from rich.console import Console

from flagvega.actions import serve
from flagvega.actions.call import Call
from flagvega.config.spec import Spec
from flagvega.errors import PreflightError
from flagvega.launch.script import secrets
from flagvega.platform import find_chip, platforms
from flagvega.records import write_json, write_text
from flagvega.run.directory import RunDirectory
from flagvega.run.prepare import prepare
from flagvega.serve.hosts import SERVE_FILE
from flagvega.serve.job import gateway_address, has_gateway
from flagvega.serve.load import Bench, LoadError
from flagvega.serve.probe import read_cache_tokens
from flagvega.serve.traffic import Lengths, Outcome, Targets, Traffic, outcome_facts
from flagvega.serve.tuning.answers import ANSWERS_FILE, answers_to_json
from flagvega.serve.tuning.model import Seat, seats_of, steps_of
from flagvega.serve.tuning.score import seconds_per_good
from flagvega.tune.measure import Limits
from flagvega.tune.study import Outcome as TrialOutcome
from flagvega.tune.trial import clear, read_outcome, start, stop

POLL_S: Final = 0.1
WARM_UP: Final = 8
"""Requests at once before the load that is measured, with answers of so many tokens at most."""
LATE_S: Final = 0.25
"""A load whose requests were sent later than this is not the one asked for: the host was busy."""
LATE: Final = 0.02
"""The same of emulated chips: of their time, what their host was late by."""
TIMES: Final = 2
"""A load is put on a configuration at most so often, until its times count."""
LEAVE_S: Final = 75.0
ASK_S: Final = 5.0
ERROR: Final = re.compile(r"\b(\w*(?:Error|Exception): .+)$")


@dataclass(frozen=True)
class Load:
    """What is put on each trial, and by whom."""

    bench: Bench
    traffic: Traffic
    targets: Targets
    max_time_s: float


def trial_spec(spec: Spec, folder: Path) -> Spec:
    """The configuration in the folder of its trial."""
    blocks = {name: block for name, block in spec.blocks.items() if name != "auto_tuner"}
    return replace(spec, exp_dir=folder, blocks=blocks)


def run_trial(call: Call, spec: Spec, load: Load) -> TrialOutcome:
    """Start what ``spec`` says, put the load on it, end it; nothing of it is left running.

    :raises ConfigError: when it is refused before anything starts.
    :raises PreflightError: when this host cannot start anything now.
    """
    folder = spec.exp_dir
    shutil.rmtree(folder, ignore_errors=True)
    quiet = replace(call, console=Console(stderr=True, quiet=True))
    quiet.__dict__["server"] = call.server
    decision = serve.decide(quiet, spec)
    if faults := serve.check_ports(decision):
        raise PreflightError(faults)
    config = yaml.safe_dump(dict(spec.composed), sort_keys=False, allow_unicode=True)
    directory = prepare(decision.launch, spec.name, {}, {"config.yaml": config})
    began = time.monotonic()
    limits = Limits(0, 1, 1, 1.0, load.max_time_s)
    process = start(directory, {**os.environ, **secrets(decision.launch, 0)}, limits)
    try:
        found = _measure(directory, decision, process, load)
        _leave(process)
    finally:
        stop(directory, process)
        clear(directory)
    if found is None:
        ended = read_outcome(directory, limits, time.monotonic() - began)
        return replace(ended, reason=_why(directory, ended.reason))
    return replace(found, took_s=time.monotonic() - began)


def _measure(directory: RunDirectory, decision: serve.Decision, process: subprocess.Popen[bytes],
             load: Load) -> TrialOutcome | None:  # fmt: skip
    """What came of the load; None when the run ended by itself."""
    plan, spec = decision.plan, decision.spec
    instances: Sequence[Mapping[str, Any]] = decision.launch.job.nodes[0].files[SERVE_FILE]["instances"]
    first, tokenizer = instances[0], str(spec.services[0].arguments["model"])
    url = first["url"]
    if has_gateway(spec, plan):
        host, port = gateway_address(spec)
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    awaited = [("serving", rank) for rank in range(len(instances))] + [("endpoint", 0)] * has_gateway(spec, plan)
    while any(all(event["event"] != name for event in directory.events(rank)) for name, rank in awaited):
        if process.poll() is not None:
            return None
        time.sleep(POLL_S)

    def put(traffic: Traffic) -> Outcome:
        return load.bench.measure(url, first["model"], str(Path(tokenizer).expanduser()), traffic, load.targets)

    def late() -> tuple[float, float]:
        logs = directory.log_dir(decision.cluster.nodes[0].host)
        counts = [
            platforms.get(name).lateness(logs) for name in {find_chip(each.chip).vendor for each in plan.instances}
        ]
        return sum(count[0] for count in counts if count), sum(count[1] for count in counts if count)

    try:
        put(_warm_up(load.traffic))
        for _ in range(TIMES):
            before = late()
            outcome = put(load.traffic)
            invalid = _invalid(outcome, before, late())
            if not invalid:
                break
    except LoadError as error:
        return None if process.poll() is not None else TrialOutcome("crash", str(error))
    if process.poll() is not None:
        return None
    write_json(directory.root / "measured.json", outcome_facts(outcome))
    write_text(directory.root / ANSWERS_FILE, json.dumps(answers_to_json(outcome.answers)) + "\n")
    seats = seats_of(plan.instances, {service.name: service.arguments for service in spec.services})
    judged = replace(_judged(outcome, load), details=_details(outcome, instances, seats))
    return replace(judged, status="invalid_timing", reason=invalid, time_s=None) if invalid else judged


def _invalid(outcome: Outcome, before: tuple[float, float], after: tuple[float, float]) -> str:
    """Why the times of a load do not count; empty when they do."""
    if outcome.late_s > LATE_S:
        return f"the host was busy: requests were sent up to {outcome.late_s:.2f} s late"
    took_s, late_s = after[0] - before[0], after[1] - before[1]
    if late_s > LATE * took_s:
        return f"the host was busy: {late_s:.2f} s late in {took_s:.1f} s of emulated chips"
    return ""


def _warm_up(traffic: Traffic) -> Traffic:
    """The first requests of an engine compile."""
    shortest = Lengths(values=(min(WARM_UP, traffic.output_tokens.longest),))
    return replace(traffic, output_tokens=shortest, rate_per_s=None, concurrency=WARM_UP, num_requests=WARM_UP)


def _judged(outcome: Outcome, load: Load) -> TrialOutcome:
    """The load in the words of a search."""
    if outcome.failures == outcome.num_requests:
        return TrialOutcome("crash", f"no request was answered: {outcome.answers[0].error}"[:300])
    time_s, share = seconds_per_good(load.traffic, load.targets, outcome), outcome.good_share
    facts = {
        "goodput_per_s": round(outcome.goodput_per_s, 3),
        "in_time": f"{share:.1%}",
        "first_token_p50_s": round(outcome.first_token_s.p50, 4),
        "first_token_p99_s": round(outcome.first_token_s.p99, 4),
        "per_token_p50_s": round(outcome.per_token_s.p50, 5),
        "per_token_p99_s": round(outcome.per_token_s.p99, 5),
    }
    facts |= {"failures": outcome.failures} if outcome.failures else {}
    # Of a share of so many requests; of times, nothing is said.
    half = 1.96 * (share * (1 - share) / outcome.num_requests) ** 0.5 / max(share, 1e-9)
    tokens_per_s = outcome.output_tokens_per_s
    return TrialOutcome("ok", time_s=time_s, half_width_s=time_s * half, tokens_per_s=tokens_per_s, facts=facts)


def _details(outcome: Outcome, instances: Sequence[Mapping[str, Any]], seats: Sequence[Seat]) -> dict[str, Any]:
    """What a search learns from, instance by instance."""
    sums = steps_of(seats, outcome.answers)
    return {
        "instances": [
            {
                "steps": asdict(each),
                # Its label in the metrics of this engine.
                "cache_tokens": read_cache_tokens(
                    instance["url"], instance.get("metrics", {}).get("cache_tokens", ""), ASK_S
                ),
            }
            for instance, each in zip(instances, sums, strict=True)
        ],
        "late_s": outcome.late_s,
        "host_busy": outcome.host_busy,
    }


def _leave(process: subprocess.Popen[bytes]) -> None:
    """Ask the run to end, and wait for that."""
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(LEAVE_S)


def _why(directory: RunDirectory, reason: str) -> str:
    """With the engine's own last words about it, to be read by people."""
    run = directory.read()
    logs = sorted(directory.log_dir(run.host).glob("rank-*.log")) if run else []
    for log in logs:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        found = [match[1] for line in lines if (match := ERROR.search(line))]
        if found:
            return f"{reason}: {found[-1][:300]}"
    return reason
