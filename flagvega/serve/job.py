"""The job of a serving run: one keeper on the host, which starts the instances and watches over them."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flagvega.cluster.nodes import Cluster
from flagvega.config.blocks import GatewayBlock
from flagvega.config.spec import Spec
from flagvega.layout.job import Job, NodeJob, source_path
from flagvega.layout.serving import ServePlan, serve_plan_to_json
from flagvega.serve.batch import BATCH_FILE, read_prompts
from flagvega.serve.curve import DEFAULT_SLOTS, PROFILE_FILE, Row, curve_of, read_serve_profile
from flagvega.serve.probe import KEY_ENV
from flagvega.server import Server

PLAN_FILE = "plan.json"
SERVE_FILE = "job/serve.json"
GATEWAY_FILE = "job/gateway.json"
HANDOVER = "serve/handover"
"""What passes between instances that share requests; gone when the run has ended."""


def make_job(spec: Spec, plan: ServePlan, cluster: Cluster, server: Server) -> Job:
    """The keeper's command, and what it reads."""
    services = {service.name: service for service in spec.services}
    instances: list[dict[str, Any]] = []
    for instance in plan.instances:
        service = services[instance.service]
        handover = spec.exp_dir.absolute() / HANDOVER if server.shares(service, spec.services) else None
        command = server.command(service, instance, len(plan.instances), handover)
        # The user's own variables come through the keeper, and before ours; secrets among them are in no file.
        env = {name: value for name, value in command.env.items() if name not in spec.envs}
        place = {"id": instance.id, "url": instance.url, "service": instance.service, "chip": instance.chip}
        instances.append({**asdict(command), "env": env, **place, "role": instance.role})
    run_dir = str(spec.exp_dir.absolute())
    keeper = NodeJob(
        node=0,
        host=cluster.nodes[0].host,
        num_ranks=len(plan.instances),
        argv=(sys.executable, "-P", "-m", "flagvega.serve.keeper", "--run-dir", run_dir),
        env=source_path() | dict(spec.envs),
        is_launcher=True,
    )
    kept: dict[str, Any] = {"name": spec.name, "instances": instances, "scratch": [HANDOVER]}
    files: dict[str, Any] = {PLAN_FILE: serve_plan_to_json(plan), SERVE_FILE: kept}
    if spec.generate:
        kept["batch"] = [sys.executable, "-P", "-m", "flagvega.serve.batch", "--run-dir", run_dir]
        files[BATCH_FILE] = _batch(spec, instances)
    elif has_gateway(spec, plan):
        files[GATEWAY_FILE] = gateway_settings(spec, plan)
        kept["gateway"] = _gateway(spec, instances[0]["model"])
    return Job((keeper,), files)


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
    key = {"instance_key_env": KEY_ENV} if KEY_ENV in os.environ else {}
    return {**given, **key, "run_dir": str(spec.exp_dir.absolute()), "instances": instances}


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
    config = str(spec.exp_dir.absolute() / GATEWAY_FILE)
    return {
        "argv": [sys.executable, "-P", "-m", "flagvega.serve", "--config", config],
        "env": {},
        "url": f"http://{f'[{host}]' if ':' in host else host}:{port}",
        "model": model,
        "start_s": 3600,
        "key_env": spec.blocks.get("gateway", {}).get("api_key_env"),
    }
