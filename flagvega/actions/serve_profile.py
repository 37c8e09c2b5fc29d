"""``action=profile`` where the task is to serve: what one instance of each kind can do, by the engine's own bench."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
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
    Handover,
    Level,
    Reading,
    Row,
    ServeProfile,
    form_name,
    profile_to_json,
)
from flagvega.serve.fleets import PARTS
from flagvega.serve.hosts import SERVE_FILE
from flagvega.serve.measure import ANSWERS_FILE, MEASURE_FILE
from flagvega.serve.place import find_host, place
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
        return "-".join([self.service.name, *self.row_name.split()])

    @property
    def row_name(self) -> str:
        """As its row in the profile is called."""
        return form_name(self.chip, self.service.tp, self.service.pp)


def act(call: Call) -> Answer:
    """Measure what is not measured yet, one instance at a time, and write ``<exp_dir>/serve_profile.json``."""
    spec = checked(call)
    given = round(read_traffic(spec)[0].input_tokens.mean) if given_traffic(spec) else INPUT_TOKENS
    forms = list(find_forms(spec, find_host(spec), _degrees(call)))
    rows: list[Row] = []
    for number, form in enumerate(forms, 1):
        call.say(f"{number} of {len(forms)}: {form.name}")
        folder = _folder(spec, form.name, [form], given)
        if failed := _measure(call, [form.service], folder, partial(_job_of_one, call, given)):
            return failed
        rows.append(row_of(form, read_json_lines(folder / ANSWERS_FILE)))
    handovers: list[Handover] = []
    if call.choice("roles", ("true", "false"), "false") == "true":
        reader, writer = find_pair(call, spec, forms)
        call.say(f"{reader.row_name} reads, {writer.row_name} writes")
        folder = _folder(spec, f"{reader.name}-{writer.name}", [reader, writer], given)
        if failed := _measure(call, [reader.service, writer.service], folder, _job_of_two):
            return failed
        handovers.append(handover_of(reader, writer, read_json_lines(folder / ANSWERS_FILE)))
    return _finish(call, spec, rows, handovers)


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


def find_pair(call: Call, spec: Spec, forms: Sequence[Form]) -> tuple[Form, Form]:
    """The first two forms of which one can read for the other, as services that share requests.

    :raises ConfigError: with what the engine says of the last two, when there are none.
    """
    devices = find_host(spec).nodes[0].devices
    faults: list[Fault] = [Fault("roles take two instances, and the host has devices for one", "cluster")]
    # Unlike chips before like ones.
    for one, other in sorted(product(forms, forms), key=lambda pair: pair[0].chip == pair[1].chip):
        needed = Counter({one.chip: one.service.num_devices})
        needed[other.chip] += other.service.num_devices
        if any(number > devices.count(chip) for chip, number in needed.items()):
            continue
        names = {"served_model_name": [one.service.name]}
        services = [
            replace(form.service, name=role, role=role, arguments={**form.service.arguments, **names})
            for role, form in zip(PARTS, (one, other), strict=True)
        ]
        pair = replace(spec, services=tuple(services))
        faults = [*call.server.check(pair), *call.server.check_plan(pair, place(pair)[1].instances)]
        if not faults:
            reader, writer = (replace(form, service=each) for form, each in zip((one, other), services, strict=True))
            return reader, writer
    raise ConfigError(faults)


def handover_of(reader: Form, writer: Form, answers: Sequence[Mapping[str, Any]]) -> Handover:
    """What was measured of two forms."""
    readings = (Reading(each["number"], each["first_token_s"]) for each in answers if each["what"] == "handover")
    model = str(reader.service.arguments["model"])
    return Handover(model, reader.row_name, writer.row_name, tuple(readings))


def _degrees(call: Call) -> tuple[int, ...]:
    given = call.command.options.get("tp")
    if given is None:
        return ()
    words = given.strip("[]").replace(" ", "").split(",")
    if not all(word.isdecimal() and int(word) for word in words):
        raise ConfigError(Fault(f"{given!r} is no list of degrees", "command line: tp", "for example 1,2"))
    return tuple(sorted({int(word) for word in words}))


def _folder(spec: Spec, name: str, forms: Sequence[Form], given: int) -> Path:
    """Of a measurement; other settings have another one."""
    arguments = [{k: v for k, v in form.service.arguments.items() if k not in _PLACES} for form in forms]
    text = json.dumps([*arguments, given], sort_keys=True, default=str)
    key = hashlib.sha256(text.encode()).hexdigest()[:8]
    return Path(os.path.abspath(spec.exp_dir)) / FOLDER / f"{name}-{key}"


def _is_done(folder: Path) -> bool:
    return any(row["what"] == "done" for row in read_json_lines(folder / ANSWERS_FILE))


def _measure(
    call: Call, services: Sequence[Service], folder: Path, job_of: Callable[[Decision], tuple[str, Mapping[str, Any]]]
) -> Answer | None:
    """Start the instances, measure, end them, telling every answer; what there is to say where that failed.

    ``job_of`` tells the module that measures, and what it is told. What is measured is not measured again.
    """
    if _is_done(folder):
        return None
    blocks = {name: block for name, block in call.spec.blocks.items() if name != "gateway"}
    alone = replace(call.spec, services=tuple(services), blocks=blocks, exp_dir=folder)
    decision = decide(call, alone)
    decision = _with_job(decision, *job_of(decision))
    directory = ready(call, decision, {"chips": [instance.chip for instance in decision.plan.instances]})
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
    if not run.exit_code:
        return None
    hint = "what was measured is kept; the same command goes on from there"
    document = {"exit_code": run.exit_code, "reason": run.reason, "profile": None}
    said = f"measuring ended with code {run.exit_code}: {run.reason}"
    return Answer(document, (said, *run.notes, hint), run.exit_code)


def _job_of_one(call: Call, given: int, decision: Decision) -> tuple[str, Mapping[str, Any]]:
    (service,), (instance,) = decision.spec.services, decision.plan.instances
    bench, kept = call.server.bench(), _kept(decision)["instances"][0]
    return "flagvega.serve.measure", {
        "bench": {"argv": list(bench.argv), "env": dict(bench.env)},
        "url": instance.url,
        "model": kept["model"],
        "tokenizer": str(Path(str(service.arguments["model"])).expanduser().absolute()),
        "cache_label": kept["metrics"].get("cache_tokens"),
        "slots": service.arguments.get("max_num_seqs") or DEFAULT_SLOTS,
        "step_tokens": service.arguments.get("max_num_batched_tokens") or DEFAULT_STEP_TOKENS,
        "input_tokens": given,
    }


def _job_of_two(decision: Decision) -> tuple[str, Mapping[str, Any]]:
    arguments = decision.spec.services[0].arguments
    return "flagvega.serve.measure_pair", {
        "urls": [instance.url for instance in decision.plan.instances],
        "model": _kept(decision)["instances"][0]["model"],
        "step_tokens": arguments.get("max_num_batched_tokens") or DEFAULT_STEP_TOKENS,
    }


def _kept(decision: Decision) -> Mapping[str, Any]:
    """What the keeper is told."""
    (keeper,) = decision.launch.job.nodes
    kept: Mapping[str, Any] = keeper.files[SERVE_FILE]
    return kept


def _with_job(decision: Decision, module: str, measure: Mapping[str, Any]) -> Decision:
    """The same with the measuring beside the instances, and no gateway; when it ends, so does the run."""
    job = decision.launch.job
    (keeper,) = job.nodes
    kept = {name: value for name, value in _kept(decision).items() if name != "gateway"}
    argv = [sys.executable, "-P", "-m", module, "--run-dir", str(decision.launch.run_dir)]
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


def _finish(call: Call, spec: Spec, rows: Sequence[Row], handovers: Sequence[Handover]) -> Answer:
    profile = ServeProfile(tuple(rows), call.server.name, time.strftime("%F"), tuple(handovers))
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
