"""``action=profile`` where the task is to serve: what one instance of each kind can do, by the engine's own bench."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flagvega.actions.call import Answer, Call
from flagvega.actions.serve import Decision, decide, ready
from flagvega.cluster.nodes import Cluster
from flagvega.config.spec import Service, Spec
from flagvega.errors import ConfigError, Fault
from flagvega.launch.script import secrets
from flagvega.records import Lines, read_json_lines, write_json, writing
from flagvega.run.supervisor import Supervisor
from flagvega.serve.curve import (
    DEFAULT_SLOTS,
    DEFAULT_STEP_TOKENS,
    PROFILE_FILE,
    Level,
    Reading,
    Row,
    ServeProfile,
    profile_to_json,
)
from flagvega.serve.hosts import SERVE_FILE
from flagvega.serve.measure import ANSWERS_FILE, MEASURE_FILE
from flagvega.serve.place import find_host
from flagvega.serve.tables import answer_line, levels_table, readings_table
from flagvega.serve.traffic_block import given_traffic, read_traffic

FOLDER = "profile"
"""In the run's folder: a folder for each form of an instance."""
INPUT_TOKENS = 64
"""Of the prompts behind levels, where the YAML tells of no traffic."""
MOST_BUSY = 0.9
"""Share of the host's processors above which they may have been what was measured."""
_PLACES = ("port", "host")
"""Arguments that change nothing about what an instance can do."""


@dataclass(frozen=True)
class Form:
    """A kind of instance: a service on a chip, with its degrees."""

    service: Service
    chip: str

    @property
    def name(self) -> str:
        """For a folder and for what is said."""
        degrees = [f"tp{self.service.tp}"] * (self.service.tp > 1) + [f"pp{self.service.pp}"] * (self.service.pp > 1)
        return "-".join([self.service.name, self.chip, *degrees])


def act(call: Call) -> Answer:
    """Measure what is not measured yet, one instance at a time, and write ``<exp_dir>/serve_profile.json``."""
    spec = checked(call)
    given = round(read_traffic(spec)[0].input_tokens.mean) if given_traffic(spec) else INPUT_TOKENS
    forms = list(find_forms(spec, find_host(spec), _degrees(call)))
    rows: list[Row] = []
    for number, form in enumerate(forms, 1):
        call.say(f"{number} of {len(forms)}: {form.name}")
        folder = Path(os.path.abspath(spec.exp_dir)) / FOLDER / f"{form.name}-{_key(form, given)}"
        if not _is_done(folder):
            code, reason, notes = _measure(call, form, folder, given)
            if code:
                hint = "what was measured is kept; the same command goes on from there"
                document = {"exit_code": code, "reason": reason, "profile": None}
                return Answer(document, (f"measuring ended with code {code}: {reason}", *notes, hint), code)
        rows.append(row_of(form, read_json_lines(folder / ANSWERS_FILE)))
    return _finish(call, spec, rows)


def checked(call: Call) -> Spec:
    """The spec of a call about services.

    :raises ConfigError: with the faults of the services, or where there is a batch of prompts instead.
    """
    if call.draft.infers:
        raise ConfigError(Fault("a batch of prompts is not profiled or planned", "experiment.task", "type: serve"))
    if faults := list(call.server.check(call.spec)):
        raise ConfigError(faults)
    return call.spec


def find_forms(spec: Spec, cluster: Cluster, degrees: Sequence[int]) -> Iterator[Form]:
    """Every service on its chip, or on each chip of the host; at its own tensor parallelism, or at ``degrees``."""
    devices = cluster.nodes[0].devices
    for service in spec.services:
        for chip in [service.chip] if service.chip else dict.fromkeys(devices):
            for tp in degrees or (service.tp,):
                arguments = {**service.arguments, "tensor_parallel_size": tp} if tp != service.tp else service.arguments
                form = replace(service, num_replicas=1, chip=chip, arguments=arguments, role="both")
                if form.num_devices <= devices.count(chip) or not degrees:
                    yield Form(form, chip)


def _degrees(call: Call) -> tuple[int, ...]:
    given = call.command.options.get("tp")
    if given is None:
        return ()
    words = given.strip("[]").replace(" ", "").split(",")
    if not all(word.isdecimal() and int(word) for word in words):
        raise ConfigError(Fault(f"{given!r} is no list of degrees", "command line: tp", "for example 1,2"))
    return tuple(sorted({int(word) for word in words}))


def _key(form: Form, given: int) -> str:
    """Tells measurements of other settings apart."""
    arguments = {name: value for name, value in form.service.arguments.items() if name not in _PLACES}
    text = json.dumps([arguments, given], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _is_done(folder: Path) -> bool:
    return any(row["what"] == "done" for row in read_json_lines(folder / ANSWERS_FILE))


def _measure(call: Call, form: Form, folder: Path, given: int) -> tuple[int, str, tuple[str, ...]]:
    """Start the instance, measure, end it, telling every answer; the exit code, why, and what there was to say."""
    spec = call.spec
    blocks = {name: block for name, block in spec.blocks.items() if name != "gateway"}
    alone = replace(spec, services=(form.service,), blocks=blocks, exp_dir=folder)
    decision = _with_job(call, decide(call, alone), given)
    directory = ready(call, decision, {"chips": [form.chip]})
    lines = Lines(folder / ANSWERS_FILE)
    lines.skip()

    def watch() -> None:
        for answer in lines.read():
            if line := answer_line(answer):
                call.say(f"  {line}")

    try:
        run = Supervisor(directory, say=call.say, watch=watch).supervise({**os.environ, **secrets(decision.launch, 0)})
    finally:
        directory.lock.release()
    return run.exit_code or 0, run.reason, run.notes


def _with_job(call: Call, decision: Decision, given: int) -> Decision:
    """The same with the measuring beside the instance; when it ends, so does the run."""
    (service,), (instance,) = decision.spec.services, decision.plan.instances
    job, bench = decision.launch.job, call.server.bench()
    (keeper,) = job.nodes
    kept = keeper.files[SERVE_FILE]
    argv = [sys.executable, "-P", "-m", "flagvega.serve.measure", "--run-dir", str(decision.launch.run_dir)]
    measure = {
        "bench": {"argv": list(bench.argv), "env": dict(bench.env)},
        "url": instance.url,
        "model": kept["instances"][0]["model"],
        "tokenizer": str(Path(str(service.arguments["model"])).expanduser().absolute()),
        "cache_label": kept["instances"][0]["metrics"].get("cache_tokens"),
        "slots": service.arguments.get("max_num_seqs") or DEFAULT_SLOTS,
        "step_tokens": service.arguments.get("max_num_batched_tokens") or DEFAULT_STEP_TOKENS,
        "input_tokens": given,
    }
    files = {SERVE_FILE: {**kept, "batch": argv}, MEASURE_FILE: measure}
    return replace(decision, launch=replace(decision.launch, job=replace(job, nodes=(replace(keeper, files=files),))))


def row_of(form: Form, answers: Sequence[Mapping[str, Any]]) -> Row:
    """What was measured of one form."""
    levels = [answer for answer in answers if answer["what"] == "level"]
    limits = next(answer for answer in answers if answer["what"] == "limits")
    service = form.service
    return Row(
        service=service.name,
        chip=form.chip,
        tp=service.tp,
        pp=service.pp,
        model=str(service.arguments["model"]),
        arguments={name: value for name, value in service.arguments.items() if name not in (*_PLACES, "model")},
        levels=tuple(
            Level(each["number"], each["step_s"], each["tokens_per_s"], each["first_token_s"]) for each in levels
        ),
        readings=tuple(Reading(each["number"], each["first_token_s"]) for each in answers if each["what"] == "reading"),
        input_tokens=levels[0]["input_tokens"],
        max_tokens=limits["max_tokens"],
        cache_tokens=limits["cache_tokens"],
        host_busy=max(each["host_busy"] for each in levels),
    )


def _finish(call: Call, spec: Spec, rows: Sequence[Row]) -> Answer:
    profile = ServeProfile(tuple(rows), call.server.name, time.strftime("%F"))
    path = spec.exp_dir / PROFILE_FILE
    document = profile_to_json(profile)
    with writing(path):
        write_json(path, document)
    written = f"written to {path}; action=plan of this experiment uses it, others with plan.profile={path}"
    busy = [row for row in rows if row.host_busy and row.host_busy > MOST_BUSY]
    notes = [
        f"{row.name}: the host's processors were {row.host_busy:.0%} in use meanwhile; where the chip is a CPU or "
        "emulated, measure again on a host with nothing else to do"
        for row in busy
    ]
    facts = {"file": str(path), "profile": document, "notes": notes}
    return Answer(facts, (levels_table(profile), readings_table(profile), *notes, written))
