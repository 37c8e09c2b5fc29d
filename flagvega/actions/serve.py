"""``action=run`` and ``action=dryrun`` where the task is to serve."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from rich.console import RenderableType
from rich.table import Table

from flagvega.actions.call import Answer, Call
from flagvega.actions.decide import GRACE_S
from flagvega.actions.follow import next_commands
from flagvega.cluster.nodes import Cluster
from flagvega.config.redact import REDACTED, is_secret
from flagvega.config.spec import Spec
from flagvega.errors import ConfigError, Fault, PreflightError
from flagvega.launch.preflight import check_devices
from flagvega.launch.rendezvous import Rendezvous
from flagvega.launch.script import Launch, check_launch, command, render, secrets
from flagvega.layout.job import Job
from flagvega.layout.serving import ServePlan, serve_plan_to_json
from flagvega.records import read_json
from flagvega.report.batch import BatchView
from flagvega.report.progress import duration
from flagvega.run.directory import Run, RunDirectory
from flagvega.run.prepare import prepare, start_detached
from flagvega.run.supervisor import Supervisor
from flagvega.serve.batch import BATCH_FILE, RESULT_FILE, count_done
from flagvega.serve.job import GATEWAY_FILE, SERVE_FILE, gateway_address, has_gateway, make_job
from flagvega.serve.place import check_port, place


@dataclass(frozen=True)
class Decision:
    """What was asked and everything that follows from it."""

    spec: Spec
    cluster: Cluster
    plan: ServePlan
    launch: Launch
    warnings: tuple[str, ...]


def run(call: Call, given: Spec | None = None) -> Answer:
    """Start the instances, and stay until they end; detach=true returns at once. ``given``: see :func:`decide`."""
    decision = decide(call, given)
    watch: dict[str, Any] = {"chips": [instance.chip for instance in decision.plan.instances]}
    prompts: list[str] = decision.launch.job.files.get(BATCH_FILE, {}).get("prompts", [])
    if prompts:
        _check_question(decision)
        watch["num_prompts"] = len(prompts)
        if len(count_done(decision.launch.run_dir / RESULT_FILE, prompts)) == len(prompts):
            return _all_done(decision.launch.run_dir / RESULT_FILE, len(prompts))
    directory = ready(call, decision, watch)
    commands = next_commands(directory.root)
    environ = {**os.environ, **secrets(decision.launch, 0)}
    if call.flag("detach"):
        started = start_detached(directory, environ)
        document = {"run_id": started.run_id, "run_dir": str(directory.root), "state": started.state, "next": commands}
        return Answer({**document, "endpoints": _endpoints(decision)}, _started(started, directory.root, commands))
    call.say(f"run in {directory.root}; starting takes a minute or more")
    try:
        with BatchView(call.console, directory.root / RESULT_FILE, prompts) as view:
            ended = Supervisor(directory, say=call.say, watch=view.update).supervise(environ)
    finally:
        directory.lock.release()
    return Answer(_summary(ended, directory.root), _ended(ended, view), ended.exit_code or 0)


def ready(call: Call, decision: Decision, watch: Mapping[str, Any]) -> RunDirectory:
    """Check this host, take the run directory and write its files.

    :raises ConfigError: when a model is not there or the chips do not compute it.
    :raises PreflightError: when the host is not ready.
    """
    faults = [*call.server.check_host(), *check_ports(decision), *check_devices(decision.cluster.nodes[0])]
    if missing := call.server.check_files(decision.spec, decision.plan.instances):
        raise ConfigError(missing)
    if faults:
        raise PreflightError(faults)
    config = yaml.safe_dump(dict(decision.spec.composed), sort_keys=False, allow_unicode=True)
    return prepare(decision.launch, decision.spec.name, watch, {"config.yaml": config})


def dryrun(call: Call) -> Answer:
    """The plan and every command, and nothing runs."""
    decision = decide(call)
    launch = decision.launch
    instances = launch.job.files[SERVE_FILE]["instances"]
    commands = [
        {**each, "env": {name: REDACTED if is_secret(name) else value for name, value in each["env"].items()}}
        for each in instances
    ]
    document = {
        "name": decision.spec.name,
        "run_dir": str(launch.run_dir),
        "warnings": list(decision.warnings),
        "cluster": [{"host": node.host, "devices": list(node.devices)} for node in decision.cluster.nodes],
        "plan": serve_plan_to_json(decision.plan),
        "commands": commands,
        "keeper": command(launch, 0),
        "files": render(launch),
    }
    return Answer(document, (*_shown(decision.plan, commands), "\nNothing was started."))


def decide(call: Call, given: Spec | None = None) -> Decision:
    """Instances, their places and their commands; ConfigError with all that is wrong.

    ``given`` stands in place of the spec of the call.
    """
    spec, server = given or call.spec, call.server
    faults = list(server.check(spec))
    if faults:
        raise ConfigError(faults)
    cluster, plan = place(spec)
    if faults := list(server.check_plan(spec, plan.instances)):
        raise ConfigError(faults)
    warnings = tuple(server.warnings(spec, plan.instances))
    for warning in warnings:
        call.say(f"warning: {warning}")
    launch = Launch(
        run_dir=Path(os.path.abspath(spec.exp_dir)),
        directory=Path.cwd(),
        job=make_job(spec, plan, cluster, server),
        ranks=(tuple(instance.id for instance in plan.instances),),
        rendezvous=Rendezvous(),
        grace_s=call.number("grace_s", GRACE_S),
        before_start=spec.cmds.before_start,
        after_stop=spec.cmds.after_stop,
    )
    _check_gateway(spec, launch.job)
    if faults := check_launch(launch):
        raise ConfigError(faults)
    return Decision(spec, cluster, plan, launch, (*spec.warnings, *warnings))


def _check_gateway(spec: Spec, job: Job) -> None:
    """ConfigError with what the gateway would refuse."""
    if GATEWAY_FILE in job.files:
        from flagvega.serve.gateway.settings import check_settings

        try:
            check_settings(job.files[GATEWAY_FILE], "gateway")
        except ConfigError as error:
            faults = [replace(fault, where=spec.where.get(fault.where, fault.where)) for fault in error.faults]
            raise ConfigError(faults) from error


def check_ports(decision: Decision) -> list[Fault]:
    """Whether all addresses of a run are free."""
    instances, key = decision.plan.instances, "engine_args.port"
    found = [fault for each in instances for fault in check_port(each.host, each.port, key)]
    if has_gateway(decision.spec, decision.plan):
        found += check_port(*gateway_address(decision.spec), "gateway.port")
        if find_spec("aiohttp") is None:
            fix = "pip install -r requirements/gateway.txt"
            found.append(Fault("aiohttp, which the gateway needs, is not installed", "this host", fix))
    return found


def _shown(plan: ServePlan, commands: list[dict[str, object]]) -> list[RenderableType | str]:
    table = Table("instance", "service", "role", "chip", "devices", "tp", "pp", "endpoint", box=None)
    for instance in plan.instances:
        devices = " ".join(map(str, instance.devices))
        degrees = (str(instance.tp), str(instance.pp))
        what = (str(instance.id), instance.service, instance.role, instance.chip, devices)
        table.add_row(*what, *degrees, f"{instance.url}/v1")
    lines: list[RenderableType | str] = [table]
    for each in commands:
        env, argv = each["env"], each["argv"]
        assert isinstance(env, dict)
        assert isinstance(argv, tuple | list)
        words = " \\\n    ".join([*(f"{name}={value}" for name, value in env.items()), *argv])
        lines.append(f"\n--- instance {each['id']}\n{words}")
    return lines


def _endpoints(decision: Decision) -> list[dict[str, str]]:
    found = [{"service": each.service, "url": f"{each.url}/v1"} for each in decision.plan.instances]
    if has_gateway(decision.spec, decision.plan):
        host, port = gateway_address(decision.spec)
        found.insert(0, {"service": "", "url": f"http://{host}:{port}/v1"})
    return found


def _started(run: Run, root: Path, commands: dict[str, str]) -> tuple[str, ...]:
    lines = [f"  {name:<7} {line}" for name, line in commands.items()]
    return (f"run {run.run_id} started in {root}; status says when it serves", *lines)


def _summary(run: Run, root: Path) -> dict[str, object]:
    return {"run_id": run.run_id, "run_dir": str(root), "state": run.state, "exit_code": run.exit_code,
            "reason": run.reason, "notes": list(run.notes), "next": next_commands(root)}  # fmt: skip


def _ended(run: Run, view: BatchView) -> tuple[str, ...]:
    took = duration((run.ended or run.started) - run.started)
    lines = [f"run {run.run_id} {run.state} with exit code {run.exit_code} after {took}"]
    lines += [f"{view.num_done} of {view.total} prompts have a result: {view.file}"] if view.total else []
    return (*lines, *([run.reason] if run.exit_code else []), *run.notes)


def _all_done(file: Path, total: int) -> Answer:
    """Nothing is left to ask."""
    document = {"run_dir": str(file.parent), "state": "done", "exit_code": 0, "prompts": total}
    return Answer(document, (f"all {total} prompts have a result: {file}",))


def _check_question(decision: Decision) -> None:
    """ConfigError when the folder has results of another question: they would stand among the new ones unmarked."""
    old, new = decision.launch.run_dir / BATCH_FILE, decision.launch.job.files[BATCH_FILE]
    if not old.exists() or not (decision.launch.run_dir / RESULT_FILE).exists():
        return
    model = decision.spec.services[0].arguments.get("model")
    before = read_json(old)
    if (before["sampling"], before["model"]) != (new["sampling"], model):
        what = "the results here are of another model or of tokens drawn in another way"
        raise ConfigError(Fault(what, str(decision.launch.run_dir), "give another experiment.exp_dir"))
