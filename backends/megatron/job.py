"""The job of a plan: a rank program for every host, its environment, and the files it reads."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from backends.megatron.arguments import complete
from backends.megatron.shape import shape_from_arguments
from flagvega.cluster.nodes import Cluster
from flagvega.config.spec import Spec
from flagvega.layout.codec import plan_to_json
from flagvega.layout.job import Job, NodeJob, source_path
from flagvega.layout.plan import Plan
from flagvega.model.work import model_flops
from flagvega.platform import Platform, find_chip, platforms

PLAN_FILE = "plan.json"
RANK_FILE = "job/rank.json"


def make_job(spec: Spec, plan: Plan, cluster: Cluster) -> Job:
    """Commands for the nodes that the plan uses, in node order."""
    nodes = sorted({node for mesh in plan.meshes for node, _ in mesh.devices})
    return Job(
        nodes=tuple(_node_job(spec, plan, cluster, node) for node in nodes),
        files={
            PLAN_FILE: plan_to_json(plan),
            RANK_FILE: {
                "name": spec.name,
                "arguments": complete(spec.arguments),
                "bridge": dict(spec.blocks.get("bridge", {})),
                "report": {**spec.blocks.get("report", {}), "flops_per_token": _flops_per_token(spec)},
            },
        },
    )


def make_probe_job(spec: Spec, plan: Plan, cluster: Cluster, questions: Mapping[str, Any]) -> Job:
    """Commands that measure instead of training: ``questions`` are in :mod:`flagvega.plan.questions`' words."""
    job = make_job(spec, plan, cluster)
    nodes = tuple(replace(node, argv=(*node.argv, "--profile")) for node in job.nodes)
    rank = {**job.files[RANK_FILE], "probe": dict(questions)}
    return Job(nodes, {**job.files, RANK_FILE: rank})


def _flops_per_token(spec: Spec) -> float:
    """Model FLOPs of forward and backward, for MFU."""
    seq = complete(spec.arguments)["seq_length"]
    return float(model_flops(shape_from_arguments(spec.arguments), seq, samples=1) / seq)


def _node_job(spec: Spec, plan: Plan, cluster: Cluster, node: int) -> NodeJob:
    devices = sorted((local, mesh.chip) for mesh in plan.meshes for its, local in mesh.devices if its == node)
    return NodeJob(
        node=node,
        host=cluster.nodes[node].host,
        num_ranks=len(devices),
        argv=(sys.executable, "-P", "-m", "backends.megatron", "--run-dir", str(spec.exp_dir.absolute())),
        env=_environment(spec, devices) | {"FLAGVEGA_NODE": str(node)},
    )


def _environment(spec: Spec, devices: list[tuple[int, str]]) -> dict[str, str]:
    """Ours, then the chips', then the user's."""
    found: dict[str, str] = {"CUDA_DEVICE_MAX_CONNECTIONS": "1", **source_path()}
    if interface := os.environ.get("GLOO_SOCKET_IFNAME"):
        found["GLOO_SOCKET_IFNAME"] = interface
    for local, chip in devices:
        platform = platforms.get(find_chip(chip).vendor)
        if not _is_cuda(platform):
            found |= {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
        found |= platform.env(chip, local, len(devices))
    return found | dict(spec.envs)


def _is_cuda(platform: Platform) -> bool:
    """Whether torch compiles for the vendor's devices as it does for CUDA's."""
    return platform.collective_backend == "nccl"
