"""``action=profile``: measure chips and links with the real engine, and write what later plans go by."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from flagvega.actions import serve_profile
from flagvega.actions.call import Answer, Call
from flagvega.actions.decide import Decision, make_launch
from flagvega.actions.follow import environment, ready
from flagvega.cluster.source import find_cluster
from flagvega.config.spec import Spec
from flagvega.errors import ConfigError, Fault
from flagvega.plan.profile import Profile, Validity, validity_of
from flagvega.plan.questions import MICRO_BATCHES, Probe, Rounds, ask, fingerprint, left, num_answered, profile_of
from flagvega.plan.sources import PROFILE_FILE
from flagvega.plan.tables import profile_to_json
from flagvega.records import Lines, read_json_lines, write_json, writing
from flagvega.report.measured import answer_line, layers_table, links_table, optimizer_table
from flagvega.run.directory import RunDirectory
from flagvega.run.supervisor import Supervisor

FOLDER = "profile"
"""In the run's folder: logs, and the measurements as they come."""


def act(call: Call) -> Answer:
    """Measure what is not measured yet, and write ``<exp_dir>/profile.json``."""
    if call.serves:
        return serve_profile.act(call)
    spec = call.spec
    folder = Path(os.path.abspath(spec.exp_dir)) / FOLDER
    probe, valid = pose(call, spec)
    key = fingerprint(valid, spec.arguments)
    known = _answers(folder, key)
    rounds = left(probe, known)
    done = num_answered(probe, known)
    call.say(f"{probe.num_questions} measurements in {folder}" + (f", {done} of them there already" if done else ""))
    if rounds:
        decision = decide_probe(call, replace(spec, exp_dir=folder), probe, rounds, _keyed(key))
        directory = ready(call, decision, with_data=False)
        code, reason, notes = _follow(call, decision, directory, probe, key)
        if code:
            what = f"measuring ended with code {code}: {reason}"
            hint = "what was measured is kept; the same command goes on from there"
            return Answer({"exit_code": code, "reason": reason, "profile": None}, (what, hint), code)
    else:
        notes = ()
    return _finish(call, spec, folder, key, valid, notes)


def pose(call: Call, spec: Spec) -> tuple[Probe, Validity]:
    """What to measure where: whatever the layout in the YAML is."""
    engine = call.engine
    bare = engine.free(spec)
    settled = engine.settle(bare, None)
    if faults := engine.check(settled):
        raise ConfigError(faults)
    offer = engine.offer(bare)
    cluster = find_cluster(spec, offer.layout)
    probe = ask(
        offer.workload, offer.choices, offer.layout, cluster, _micro_batches(call, spec, offer.workload.global_batch),
        lambda mesh: engine.legal_mesh(settled, mesh),
    )  # fmt: skip
    return probe, validity_of(offer.workload, engine.version(), time.strftime("%F"))


def _micro_batches(call: Call, spec: Spec, global_batch: int) -> tuple[int, ...]:
    given = call.command.options.get("micro_batches")
    if given is None:
        pinned = spec.arguments.get("micro_batch_size")
        return tuple(sorted({size for size in (*MICRO_BATCHES, pinned or 1) if size <= global_batch}))
    words = given.strip("[]").replace(" ", "").split(",")
    if not all(word.isdecimal() and int(word) for word in words):
        raise ConfigError(Fault(f"{given!r} is no list of counts", "command line: micro_batches", "for example 1,2,4"))
    return tuple(sorted({int(word) for word in words}))


def decide_probe(call: Call, spec: Spec, probe: Probe, rounds: Rounds, file: str) -> Decision:
    """What is to be started in ``spec.exp_dir``: ``rounds`` are left, and answered into ``file`` there."""
    questions = {"file": file, "rounds": rounds}
    spec = call.engine.settle(call.engine.free(spec), None)
    job = call.engine.probe_job(spec, probe.plan, probe.cluster, questions)
    launch = make_launch(call, spec, probe.plan, job)
    return Decision(spec, probe.cluster, probe.plan, launch, ())


def _follow(call: Call, decision: Decision, directory: RunDirectory, probe: Probe,
            key: str) -> tuple[int, str, tuple[str, ...]]:  # fmt: skip
    """Run to the end, telling every answer; the exit code, why, and what ranks had to say."""
    folder = directory.root
    lines = Lines(folder / _keyed(key))
    lines.skip()
    answers = _answers(folder, key)

    def watch() -> None:
        for answer in lines.read():
            answers.append(answer)
            call.say(f"  {num_answered(probe, answers):>3} of {probe.num_questions}  {answer_line(answer)}")

    try:
        run = Supervisor(directory, say=call.say, watch=watch).supervise(environment(decision))
    finally:
        directory.lock.release()
    return run.exit_code or 0, run.reason, run.notes


def _keyed(key: str) -> str:
    """The answers for one model and its settings."""
    return f"measured-{key}.jsonl"


def _answers(folder: Path, key: str) -> list[dict[str, Any]]:
    return read_json_lines(folder / _keyed(key))


def _finish(call: Call, spec: Spec, folder: Path, key: str, valid: Validity, notes: tuple[str, ...]) -> Answer:
    answers = _answers(folder, key)
    if not answers:
        return Answer({"profile": None}, ("measured; host 0 of the run writes the profile",))
    profile = profile_of(answers, valid)
    path = spec.exp_dir / PROFILE_FILE
    document = profile_to_json(profile)
    with writing(path):
        write_json(path, document)
    skipped = [f"skipped: {answer_line(answer)}" for answer in answers if "skipped" in answer]
    written = f"written to {path}; plans of this experiment use it, others with plan.profile={path}"
    facts = {"file": str(path), "profile": document, "skipped": skipped, "notes": list(notes)}
    return Answer(facts, (*_tables(profile), *skipped, *notes, written))


def _tables(profile: Profile) -> list[Any]:
    return [layers_table(profile), optimizer_table(profile), links_table(profile)]
