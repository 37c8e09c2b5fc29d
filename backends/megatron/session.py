"""From a run directory to a trainer that is ready: device, world, groups, model, data, checkpoint."""

from __future__ import annotations

import importlib
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from flagvega.layout.codec import plan_from_json
from flagvega.layout.plan import Plan
from flagvega.layout.ranks import Place, find_place, places
from flagvega.platform import Device, find_chip, platforms
from flagvega.records import read_json


@dataclass(frozen=True)
class Settings:
    """What a rank reads from its run directory."""

    run_dir: Path
    name: str
    arguments: Mapping[str, Any]
    plan: Plan


def read_settings(run_dir: Path) -> Settings:
    """The plan and the engine arguments of a run."""
    rank = read_json(run_dir / "job" / "rank.json")
    return Settings(run_dir, run_dir.name, rank["arguments"], plan_from_json(read_json(run_dir / "plan.json")))


def open_device(me: Place, plan: Plan) -> tuple[Device, torch.device]:
    """The rank's device; megatron-core is made to use it.

    A vendor numbers its own devices only: a host may hold others before them.
    """
    from backends.megatron import facade

    vendor = find_chip(me.mesh.chip).vendor
    before = [place for place in places(plan) if place.node == me.node and place.local < me.local]
    index = sum(find_chip(place.mesh.chip).vendor == vendor for place in before)
    device: Device = importlib.import_module(f"hardware.{vendor}.device").device
    opened = device.open(me.mesh.chip, index)
    if opened.type != "cuda":
        facade.install(opened, device.namespace)
    return device, opened


def join_world(me: Place, plan: Plan, timeout_minutes: int) -> None:
    """Meet the other ranks over gloo, as the rank that the plan says."""
    os.environ["RANK"], os.environ["WORLD_SIZE"] = str(me.rank), str(plan.world_size)
    dist.init_process_group(
        "gloo", rank=me.rank, world_size=plan.world_size, timeout=timedelta(minutes=timeout_minutes)
    )


def mesh_backends(plan: Plan) -> dict[int, str]:
    """Each mesh's collective backend, by mesh id."""
    return {mesh.id: platforms.get(find_chip(mesh.chip).vendor).collective_backend for mesh in plan.meshes}


def seed_everything(arguments: Mapping[str, Any], me: Place) -> None:
    """Random numbers of dropout: alike over tp where tensors are, unlike over everything else."""
    from megatron.core import tensor_parallel

    seed = arguments["seed"] + 100 * me.stage.id + 10 * me.dp
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
    if arguments["deterministic_mode"]:
        torch.use_deterministic_algorithms(True)


def find_own_place(plan: Plan) -> Place:
    """Who this process is: its node and its number there, as the launcher set them."""
    return find_place(plan, int(os.environ["FLAGVEGA_NODE"]), int(os.environ["LOCAL_RANK"]))
