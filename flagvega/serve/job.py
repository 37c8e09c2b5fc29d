"""The job of a serving run: one keeper on the host, which starts the instances and watches over them."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

from flagvega.cluster.nodes import Cluster
from flagvega.config.spec import Spec
from flagvega.layout.job import Job, NodeJob, source_path
from flagvega.layout.serving import ServePlan, serve_plan_to_json
from flagvega.server import Server

PLAN_FILE = "plan.json"
SERVE_FILE = "job/serve.json"


def make_job(spec: Spec, plan: ServePlan, cluster: Cluster, server: Server) -> Job:
    """The keeper's command, and what it reads."""
    services = {service.name: service for service in spec.services}
    instances: list[dict[str, Any]] = []
    for instance in plan.instances:
        command = server.command(services[instance.service], instance, len(plan.instances))
        # The user's own variables come through the keeper, and before ours; secrets among them are in no file.
        env = {name: value for name, value in command.env.items() if name not in spec.envs}
        instances.append({**asdict(command), "env": env, "id": instance.id, "url": instance.url})
    keeper = NodeJob(
        node=0,
        host=cluster.nodes[0].host,
        num_ranks=len(plan.instances),
        argv=(sys.executable, "-P", "-m", "flagvega.serve.keeper", "--run-dir", str(spec.exp_dir.absolute())),
        env=source_path() | dict(spec.envs),
        is_launcher=True,
    )
    return Job((keeper,), {PLAN_FILE: serve_plan_to_json(plan), SERVE_FILE: {"instances": instances}})
