"""From a spec to a launch: every decision that is taken before anything starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from flagvega.actions.call import Call
from flagvega.cluster.chips import misspelt_chips
from flagvega.cluster.nodes import Cluster
from flagvega.cluster.source import find_cluster, where_of
from flagvega.config.spec import Spec
from flagvega.engine import Engine
from flagvega.errors import ConfigError, Fault
from flagvega.launch.rendezvous import find_rendezvous
from flagvega.launch.script import Launch, check_launch
from flagvega.layout.build import build_plan
from flagvega.layout.check import check_plan
from flagvega.layout.codec import plan_from_json
from flagvega.layout.job import Job
from flagvega.layout.plan import Plan
from flagvega.layout.ranks import places
from flagvega.layout.request import LayoutRequest, MeshRequest
from flagvega.platform import find_chip
from flagvega.records import read_json

GRACE_S = 120
PINS = ("objective", "max_tp", "order", "nodes", "keep")
"""Keys of the ``plan`` block that only a search heeds."""


@dataclass(frozen=True)
class Decision:
    """What was asked and everything that follows from it."""

    spec: Spec
    cluster: Cluster
    plan: Plan
    launch: Launch
    warnings: tuple[str, ...]
    """Said already; here for those who read JSON."""


def decide(call: Call, spec: Spec | None = None) -> Decision:
    """Plan, job and commands of a call's spec; ConfigError with all that is wrong.

    ``spec`` stands in for the call's own.
    """
    spec = spec or call.spec
    spec, cluster, plan = decide_plan(spec, call.engine, call.console)
    warnings = (*_idle_pins(spec), *call.engine.warnings(spec, plan))
    for warning in warnings:
        call.say(f"warning: {warning}")
    launch = make_launch(call, spec, plan, call.engine.job(spec, plan, cluster))
    return Decision(spec, cluster, plan, launch, (*spec.warnings, *warnings))


def make_launch(call: Call, spec: Spec, plan: Plan, job: Job) -> Launch:
    """How a job is started in ``spec.exp_dir``; ConfigError when it cannot be."""
    launch = Launch(
        run_dir=Path(os.path.abspath(spec.exp_dir)),
        directory=Path.cwd(),
        job=job,
        ranks=_ranks(plan, job),
        rendezvous=find_rendezvous(spec.runner, {node.node: node.host for node in job.nodes}, os.environ),
        grace_s=call.number("grace_s", GRACE_S),
        before_start=spec.cmds.before_start,
        after_stop=spec.cmds.after_stop,
    )
    if faults := check_launch(launch):
        raise ConfigError(faults)
    return launch


def watch_facts(decision: Decision) -> dict[str, Any]:
    """What a watcher needs beside the metrics: see :class:`flagvega.report.progress.Progress`."""
    settings: Mapping[str, Any] = decision.launch.job.files.get("job/rank.json", {})
    arguments: Mapping[str, Any] = settings.get("arguments", {})
    return {
        "total_steps": _total_steps(arguments),
        "flops_per_token": (settings.get("report") or {}).get("flops_per_token"),
        "peak_flops": _peak_flops(decision.plan, arguments),
        "chips": [place.mesh.chip for place in places(decision.plan)],
    }


def decide_plan(spec: Spec, engine: Engine, console: Console) -> tuple[Spec, Cluster, Plan]:
    """The plan, the cluster it is for, and the spec with what it left open filled in; ConfigError with all faults.

    A search for the plan is shown on the console.
    """
    if is_automatic(spec):
        return _choose_plan(spec, engine, console)
    file = spec.blocks.get("plan", {}).get("file")
    given = _read_plan(spec, Path(file)) if file else None
    if given is not None and not check_plan(given):
        spec = engine.settle(spec, given)
    faults = [*engine.check(spec), *misspelt_chips(spec.blocks, lambda path: where_of(spec, path))]
    try:
        request = engine.request(spec)
        cluster = find_cluster(spec, request)
        plan = given or build_plan(request, cluster)
    except ConfigError as error:
        raise ConfigError(dict.fromkeys([*faults, *error.faults])) from error
    faults += check_plan(plan)
    faults += engine.check_plan(spec, plan)
    if faults:
        raise ConfigError(dict.fromkeys(faults))
    return spec, cluster, plan


def is_automatic(spec: Spec) -> bool:
    """Whether the layout is to be chosen."""
    return bool(spec.blocks.get("plan", {}).get("file") == "auto")


def _idle_pins(spec: Spec) -> list[str]:
    """What was asked of a layout that is not chosen here."""
    if is_automatic(spec):
        return []
    given = [f"plan.{name}" for name in PINS if spec.blocks.get("plan", {}).get(name) and f"plan.{name}" in spec.where]
    fix = "only a search does: plan.file: auto, or action=plan"
    return [f"{spec.where[key]}: the layout is given, and does not heed this ({fix})" for key in given]


def check_shared(spec: Spec) -> None:
    """ConfigError where several hosts would each choose a plan for the same run.

    What a search finds within its time depends on how fast its host was meanwhile: two hosts may end with two plans.
    """
    if not is_automatic(spec):
        return
    # Only those who plan wait for the search to be imported.
    from flagvega.plan.pins import usable_part

    try:
        cluster = usable_part(spec, find_cluster(spec, LayoutRequest((MeshRequest(),), 1, 1, 1)))
    except ConfigError:
        return  # told later, with all that is wrong beside it
    if sum(bool(node.devices) for node in cluster.nodes) > 1:
        fix = f"plan once with action=plan, then start every host with plan={spec.exp_dir / 'plan.json'}"
        what = "several hosts of one run would each choose a plan of their own"
        raise ConfigError(Fault(what, _plan_place(spec), fix))


def _choose_plan(spec: Spec, engine: Engine, console: Console) -> tuple[Spec, Cluster, Plan]:
    # Only those who plan wait for the search to be imported.
    from flagvega.plan.planner import plan_spec
    from flagvega.report.searching import SearchView

    with SearchView(console) as view:
        planned = plan_spec(spec, engine, view.better)
    return planned.spec, planned.cluster, planned.plan


def _read_plan(spec: Spec, path: Path) -> Plan:
    try:
        return plan_from_json(read_json(path))
    except OSError as error:
        fix = "action=plan writes one; plan: auto has the layout chosen"
        raise ConfigError(Fault(f"cannot read the plan {path}: {error.strerror}", _plan_place(spec), fix)) from error
    except ValueError as error:
        raise ConfigError(Fault(f"the plan cannot be read: {error}", str(path))) from error


def _plan_place(spec: Spec) -> str:
    return spec.where.get("plan.file", spec.where.get("plan", "plan"))


def _ranks(plan: Plan, job: Job) -> tuple[tuple[int, ...], ...]:
    found = {(place.node, place.local): place.rank for place in places(plan)}
    return tuple(tuple(found[node.node, local] for local in range(node.num_ranks)) for node in job.nodes)


def _total_steps(arguments: Mapping[str, Any]) -> int | None:
    totals = [arguments.get("train_iters"), arguments.get("exit_interval")]
    if arguments.get("train_samples") and arguments.get("global_batch_size"):
        totals.append(-(-arguments["train_samples"] // arguments["global_batch_size"]))
    return min((total for total in totals if total), default=None)


def _peak_flops(plan: Plan, arguments: Mapping[str, Any]) -> float | None:
    dtype = next((name for name in ("fp16", "bf16") if arguments.get(name)), "fp32")
    peaks = [(find_chip(mesh.chip).peak_flops or {}).get(dtype) for mesh in plan.meshes]
    if any(peak is None for peak in peaks):
        return None
    return sum(len(mesh.devices) * (peak or 0.0) for mesh, peak in zip(plan.meshes, peaks, strict=True))
