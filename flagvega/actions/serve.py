"""``action=run`` and ``action=dryrun`` where the task is to serve."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
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
from flagvega.actions.meeting import host_commands, meet, say_commands, this_host
from flagvega.cluster.nodes import Cluster
from flagvega.config.redact import REDACTED, is_secret
from flagvega.config.spec import Spec
from flagvega.errors import ConfigError, Fault, PreflightError
from flagvega.launch.preflight import check_devices, check_port
from flagvega.launch.rendezvous import find_rendezvous
from flagvega.launch.script import Launch, check_launch, command, render, secrets
from flagvega.layout.job import Job
from flagvega.layout.serving import Instance, ServePlan, serve_plan_to_json
from flagvega.records import read_json, write_json
from flagvega.report.batch import BatchView
from flagvega.report.progress import duration
from flagvega.run.directory import Run, RunDirectory
from flagvega.run.prepare import prepare, start_detached
from flagvega.run.supervisor import Supervisor
from flagvega.serve.batch import BATCH_FILE, RESULT_FILE, count_done
from flagvega.serve.hosts import is_first_running, serve_file
from flagvega.serve.job import GATEWAY_FILE, gateway_address, has_gateway, make_job
from flagvega.serve.place import check_listening, check_reached, place
from flagvega.serve.probe import KEY_ENV
from flagvega.serve.sharing import AGREED_FILE, check_agreed, read_key, shared_facts, unshared_told


@dataclass(frozen=True)
class Decision:
    """What was asked and everything that follows from it."""

    spec: Spec
    cluster: Cluster
    plan: ServePlan
    launch: Launch
    warnings: tuple[str, ...]


def run(call: Call, given: Spec | None = None) -> Answer:
    """Start this host's instances, and stay until they end; detach=true returns at once. ``given``: as in `decide`."""
    decision = decide(call, given)
    chips = [instance.chip for instance in decision.plan.instances]
    watch: dict[str, Any] = {"unit": "instance", "chips": chips}
    prompts: list[str] = decision.launch.job.files.get(BATCH_FILE, {}).get("prompts", [])
    if prompts:
        _check_question(decision)
        watch["num_prompts"] = len(prompts)
        if len(count_done(decision.launch.run_dir / RESULT_FILE, prompts)) == len(prompts):
            return _all_done(decision.launch.run_dir / RESULT_FILE, len(prompts))
    say_commands(decision.spec, decision.launch, call.say)
    directory = ready(call, decision, watch)
    commands = next_commands(directory.root)
    environ = environment(decision)
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
    """Check this host, take the run directory, write its files, and meet the other hosts.

    :raises ConfigError: when a model is not there or the chips do not compute it.
    :raises PreflightError: when the host is not ready, or the hosts are about to run different things.
    """
    spec, launch = decision.spec, decision.launch
    node = launch.job.nodes[this_host(spec, launch)].node
    instances = decision.plan.on(node)
    faults = [*call.server.check_host(), *check_port(launch.rendezvous), *check_ports(decision)]
    faults += check_devices(decision.cluster.nodes[node])
    names = {instance.service for instance in instances}
    here = replace(spec, services=tuple(service for service in spec.services if service.name in names))
    if missing := call.server.check_files(here, instances):
        raise ConfigError(missing)
    if faults:
        raise PreflightError(faults)
    files = {"config.yaml": yaml.safe_dump(dict(spec.composed), sort_keys=False, allow_unicode=True)}
    if decision.plan.num_hosts > 1:
        return _join(call, decision, watch, files)
    return prepare(launch, spec.name, watch, files)


def _join(call: Call, decision: Decision, watch: Mapping[str, Any], files: Mapping[str, str]) -> RunDirectory:
    """Take the directory and meet the other hosts; or join them, where they serve already and were left."""
    spec, launch, position = decision.spec, decision.launch, decision.launch.rendezvous.node
    if position and is_first_running(launch.run_dir):
        check_agreed(launch.run_dir, shared_facts(spec, decision.plan, launch.run_dir), position)
        call.say("the first host serves already: this one joins it")
        return prepare(launch, spec.name, watch, files)
    directory = prepare(launch, spec.name, watch, files)
    facts = shared_facts(spec, decision.plan, launch.run_dir)
    with unshared_told(launch.run_dir):
        meet(spec, launch, directory, facts, call.say)
    if position == 0:
        write_json(launch.run_dir / AGREED_FILE, facts)
    return directory


def environment(decision: Decision) -> dict[str, str]:
    """Of the supervisor: the user's own, the secrets that no file holds, and the key of the instances."""
    launch = decision.launch
    environ = {**os.environ, **secrets(launch, launch.rendezvous.node or 0)}
    if decision.plan.num_hosts > 1 and not environ.get(KEY_ENV):
        environ[KEY_ENV] = read_key(launch.run_dir)
    return environ


def dryrun(call: Call) -> Answer:
    """The plan and every command, and nothing runs."""
    decision = decide(call)
    launch, cluster = decision.launch, decision.cluster
    hosts = {instance.id: cluster.nodes[instance.node].host for instance in decision.plan.instances}
    instances = [entry for i, node in enumerate(launch.job.nodes) for entry in node.files[serve_file(i)]["instances"]]
    commands = [
        {**each, "host": hosts[each["id"]],
         "env": {name: REDACTED if is_secret(name) else value for name, value in each["env"].items()}}
        for each in sorted(instances, key=lambda entry: int(entry["id"]))
    ]  # fmt: skip
    several = decision.plan.num_hosts > 1
    ports, typed = (_ports(decision), host_commands(decision.spec, launch)) if several else ([], [])
    endpoints = _endpoints(decision)
    document = {
        "name": decision.spec.name,
        "run_dir": str(launch.run_dir),
        "warnings": list(decision.warnings),
        "cluster": [{"host": node.host, "devices": list(node.devices)} for node in cluster.nodes],
        "plan": serve_plan_to_json(decision.plan),
        "commands": commands,
        "keepers": [{"host": node.host, "argv": command(launch, i)} for i, node in enumerate(launch.job.nodes)],
        "endpoints": endpoints,
        "ports": ports,
        "type": typed,
        "files": render(launch),
    }
    shown = _shown(decision.plan, commands, several)
    if has_gateway(decision.spec, decision.plan):
        shown.append(f"\nClients ask {endpoints[0]['url']}: the gateway there chooses the instance.")
    if several:
        shown += ["\n--- who must be reached where", *ports, "\n--- type on each host", *typed]
    return Answer(document, (*shown, "\nNothing was started."))


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
    job = make_job(spec, plan, cluster, server)
    launch = Launch(
        run_dir=Path(os.path.abspath(spec.exp_dir)),
        directory=Path.cwd(),
        job=job,
        ranks=tuple(tuple(instance.id for instance in plan.on(node.node)) for node in job.nodes),
        rendezvous=find_rendezvous(spec.runner, {node.node: node.host for node in job.nodes}, os.environ),
        grace_s=call.number("grace_s", GRACE_S),
        before_start=spec.cmds.before_start,
        after_stop=spec.cmds.after_stop,
    )
    _check_gateway(spec, job)
    if faults := check_launch(launch):
        raise ConfigError(faults)
    warnings = tuple(server.warnings(spec, _instances_here(launch, plan)))
    for warning in warnings:
        call.say(f"warning: {warning}")
    return Decision(spec, cluster, plan, launch, (*spec.warnings, *warnings))


def _instances_here(launch: Launch, plan: ServePlan) -> tuple[Instance, ...]:
    """Those of this host, of whose packages something can be said; all, where it is none of the run's."""
    position = launch.rendezvous.node
    return plan.instances if position is None else plan.on(launch.job.nodes[position].node)


def _check_gateway(spec: Spec, job: Job) -> None:
    """ConfigError with what the gateway would refuse."""
    settings = job.nodes[0].files.get(GATEWAY_FILE)
    if settings is not None:
        from flagvega.serve.gateway.settings import check_settings

        try:
            # Where the instances' key is not given, it is made later.
            check_settings(settings, "gateway", {KEY_ENV: KEY_ENV, **os.environ})
        except ConfigError as error:
            faults = [replace(fault, where=spec.where.get(fault.where, fault.where)) for fault in error.faults]
            raise ConfigError(faults) from error


def check_ports(decision: Decision) -> list[Fault]:
    """Whether all addresses of this host are free, and reached by those that need them."""
    launch, position = decision.launch, decision.launch.rendezvous.node or 0
    instances, key = decision.plan.on(launch.job.nodes[position].node), "engine_args.port"
    found = [fault for each in instances for fault in check_listening(each.host, each.port, key)]
    if position:
        found += check_reached({each.host for each in instances}, launch.rendezvous.address)
    elif has_gateway(decision.spec, decision.plan):
        found += check_listening(*gateway_address(decision.spec), "gateway.port")
        if find_spec("aiohttp") is None:
            fix = "pip install -r requirements/gateway.txt"
            found.append(Fault("aiohttp, which the gateway needs, is not installed", "this host", fix))
    return found


def _ports(decision: Decision) -> list[str]:
    """Which address is asked by whom, where hosts share a run."""
    meeting, first = decision.launch.rendezvous, decision.launch.job.nodes[0]
    lines = [f"{meeting.address}:{meeting.port}  by the other hosts, once, at the start"]
    lines += [f"{each.address}:{each.port}  by {first.host}: instance {each.id}"
              for each in decision.plan.instances if each.node != first.node]  # fmt: skip
    if has_gateway(decision.spec, decision.plan):
        host, port = gateway_address(decision.spec)
        lines.append(f"{host}:{port}  by clients, on {first.host}")
    return lines


def _shown(plan: ServePlan, commands: Sequence[Mapping[str, Any]], several: bool) -> list[RenderableType | str]:
    table = Table("instance", "service", "role", *(["host"] if several else []), "chip", "devices", "tp", "pp",
                  "endpoint", box=None)  # fmt: skip
    for instance, each in zip(plan.instances, commands, strict=True):
        what = (str(instance.id), instance.service, instance.role, *([each["host"]] if several else []), instance.chip)
        degrees = (str(instance.tp), str(instance.pp))
        table.add_row(*what, " ".join(map(str, instance.devices)), *degrees, f"{instance.url}/v1")
    lines: list[RenderableType | str] = [table]
    for each in commands:
        env = [f"{name}={shlex.quote(value)}" for name, value in each["env"].items()]
        where = f" on {each['host']}" if several else ""
        lines.append(
            f"\n--- instance {each['id']}{where}\n" + " \\\n    ".join([*env, *map(shlex.quote, each["argv"])])
        )
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
