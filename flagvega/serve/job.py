"""The job of a serving run: one keeper on each host, which starts its instances and watches over them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flagvega.cluster.nodes import Cluster
from flagvega.config.blocks import GatewayBlock
from flagvega.config.spec import Spec
from flagvega.layout.job import Job, NodeJob, source_path
from flagvega.layout.serving import Instance, ServePlan, serve_plan_to_json
from flagvega.serve.batch import BATCH_FILE, read_prompts
from flagvega.serve.curve import DEFAULT_SLOTS, PROFILE_FILE, Row, curve_of, read_serve_profile
from flagvega.serve.hosts import serve_file
from flagvega.serve.probe import KEY_ENV
from flagvega.server import Server

PLAN_FILE = "plan.json"
GATEWAY_FILE = "job/gateway.json"
HANDOVER = "serve/handover"
"""What passes between instances that share requests; gone when the run has ended."""


def make_job(spec: Spec, plan: ServePlan, cluster: Cluster, server: Server) -> Job:
    """A keeper for each host that has instances, and what it reads; the first one has the gateway, or the batch."""
    instances = [(each, _entry(spec, plan, each, server)) for each in plan.instances]
    nodes = sorted({each.node for each in plan.instances})
    hosts = [cluster.nodes[node].host for node in nodes]
    files: dict[str, Any] = {PLAN_FILE: serve_plan_to_json(plan)}
    if spec.generate:
        files[BATCH_FILE] = _batch(spec, [entry for _, entry in instances])
    keepers: list[NodeJob] = []
    for position, node in enumerate(nodes):
        own = [entry for each, entry in instances if each.node == node]
        kept: dict[str, Any] = {"name": spec.name, "instances": own, "hosts": hosts}
        its: dict[str, Any] = {serve_file(position): kept}
        if not position:
            others = [(nodes.index(each.node), entry) for each, entry in instances if each.node != node]
            kept["others"] = [{"position": place, **_known(entry)} for place, entry in others]
            kept |= _first(spec, plan, instances[0][1]["model"])
            its |= {GATEWAY_FILE: gateway_settings(spec, plan)} if has_gateway(spec, plan) else {}
        keepers.append(_keeper(spec, node, position, hosts[position], len(own), its))
    return Job(tuple(keepers), files)


def _entry(spec: Spec, plan: ServePlan, instance: Instance, server: Server) -> dict[str, Any]:
    """An instance as its keeper knows it."""
    service = next(each for each in spec.services if each.name == instance.service)
    handover = _run_dir(spec) / HANDOVER if server.shares(service, spec.services) else None
    command = server.command(service, instance, len(plan.on(instance.node)), handover)
    # The user's own variables come through the keeper, and before ours; secrets among them are in no file.
    env = {name: value for name, value in command.env.items() if name not in spec.envs}
    place = {"id": instance.id, "url": instance.url, "service": instance.service, "chip": instance.chip}
    return {**asdict(command), "env": env, **place, "role": instance.role}


def _known(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Of an instance, what other hosts need: how it is started is its own host's affair."""
    return {name: value for name, value in entry.items() if name not in ("argv", "env")}


def _first(spec: Spec, plan: ServePlan, model: str) -> dict[str, Any]:
    """What the first host has beside its instances."""
    if spec.generate:
        batch = [sys.executable, "-P", "-m", "flagvega.serve.batch", "--run-dir", str(_run_dir(spec))]
        return {"scratch": [HANDOVER], "batch": batch}
    return {"scratch": [HANDOVER]} | ({"gateway": _gateway(spec, model)} if has_gateway(spec, plan) else {})


def _keeper(spec: Spec, node: int, position: int, host: str, num: int, files: dict[str, Any]) -> NodeJob:
    argv = [sys.executable, "-P", "-m", "flagvega.serve.keeper", "--run-dir", str(_run_dir(spec))]
    argv += ["--host", str(position)] if position else []
    return NodeJob(node, host, num, tuple(argv), source_path() | dict(spec.envs), is_launcher=True, files=files)


def _run_dir(spec: Spec) -> Path:
    return spec.exp_dir.absolute()


def has_gateway(spec: Spec, plan: ServePlan) -> bool:
    """Whether there is one endpoint in front: where the YAML asks for it, and where there are several instances."""
    return not spec.generate and ("gateway" in spec.blocks or len(plan.instances) > 1)


def _batch(spec: Spec, instances: list[dict[str, Any]]) -> dict[str, Any]:
    """What the batch reads: prompts, how to draw tokens, and whom to ask."""
    slots = spec.services[0].arguments.get("max_num_seqs")
    return {
        "prompts": read_prompts(spec.generate["prompts"], spec.folder),
        "sampling": spec.generate["sampling"],
        "model": spec.services[0].arguments["model"],
        "instances": [{"url": each["url"], "model": each["model"], "slots": slots} for each in instances],
    }


def gateway_settings(spec: Spec, plan: ServePlan) -> dict[str, Any]:
    """The gateway's own file: what the YAML says, and the instances."""
    slots = {service.name: service.arguments.get("max_num_seqs") for service in spec.services}
    said = {service.name: service.capacity for service in spec.services}
    measured = measured_forms(spec)
    instances = [
        {"id": each.id, "url": each.url, "chip": each.chip, "role": each.role}
        | ({"slots": slots[each.service]} if slots[each.service] else {})
        | _capacity(measured.get((each.chip, each.tp, each.pp)), slots[each.service])
        | dict(said[each.service])
        for each in plan.instances
    ]
    given = {name: value for name, value in spec.blocks.get("gateway", {}).items() if value not in ({}, None)}
    # Over a network, instances ask for a key: where the user has none, one is made when the run starts.
    key = {"instance_key_env": KEY_ENV} if KEY_ENV in os.environ or plan.num_hosts > 1 else {}
    return {**given, **key, "run_dir": str(_run_dir(spec)), "instances": instances}


def measured_forms(spec: Spec) -> dict[tuple[str, int, int], Row]:
    """What was measured of the model by chip and degrees: in the profile of the YAML, else in that of the folder.

    :raises ConfigError: when the profile cannot be read.
    """
    given = spec.blocks.get("plan", {}).get("profile")
    path = Path(given).expanduser() if given else spec.exp_dir / PROFILE_FILE
    if not given and not path.exists():
        return {}
    models = {str(service.arguments.get("model")) for service in spec.services}
    return {(row.chip, row.tp, row.pp): row for row in read_serve_profile(path).instances if row.model in models}


def _capacity(row: Row | None, slots: int | None) -> dict[str, float]:
    """Where the gateway begins with an instance that was measured; it goes on learning."""
    if row is None:
        return {}
    curve, slots = curve_of(row), slots or DEFAULT_SLOTS
    found = {"step_s": curve.step_s(1), "decode_tokens_per_s": slots / curve.step_s(slots)}
    return found | ({"prefill_tokens_per_s": 1 / curve.prompt_token_s} if curve.prompt_token_s else {})


def gateway_address(spec: Spec) -> tuple[str, int]:
    """Host and port of the gateway."""
    given = spec.blocks.get("gateway", {})
    default = GatewayBlock()
    return given.get("host", default.host), given.get("port", default.port)


def _gateway(spec: Spec, model: str) -> dict[str, Any]:
    host, port = gateway_address(spec)
    config = str(_run_dir(spec) / GATEWAY_FILE)
    return {
        "argv": [sys.executable, "-P", "-m", "flagvega.serve", "--config", config],
        "env": {},
        "url": f"http://{f'[{host}]' if ':' in host else host}:{port}",
        "model": model,
        "start_s": 3600,
        "key_env": spec.blocks.get("gateway", {}).get("api_key_env"),
    }
