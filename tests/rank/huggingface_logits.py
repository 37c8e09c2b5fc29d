"""Run by the fork server: logits of the product's own model, loaded from HuggingFace folders or checkpoints.

``huggingface_logits.py FOLDER...``: each holds the model (or ``checkpoints/``) and ``arguments.json``; writes
``logits.npy`` and ``parameters.json`` (their number) there.
"""

from __future__ import annotations

import json
import socket
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backends.megatron import repairs
from backends.megatron.arguments import complete
from backends.megatron.convert import read_parameter
from backends.megatron.groups import build_groups
from backends.megatron.huggingface import HuggingFaceWeights
from backends.megatron.model import build_config, build_model
from backends.megatron.resume import find_good
from backends.megatron.saved import SavedTensors
from backends.megatron.session import join_world, mesh_backends, open_device, seed_everything
from backends.megatron.vocabulary import padded_vocab_size
from backends.megatron.weights import Reader, find_shards, read_weights
from flagvega.layout.plan import Batch, Chunk, Mesh, Plan, Replica, Stage
from flagvega.layout.ranks import Place, places


@dataclass(frozen=True)
class Setting:
    """One rank, ready to hold models."""

    device: torch.device
    groups: Any


def main() -> int:
    folders = [Path(name) for name in sys.argv[1:]]
    setting = set_up()
    for folder in folders:
        model = load_model(setting, folder, json.loads((folder / "arguments.json").read_text()))
        tokens = torch.from_numpy(np.load(folder / "tokens.npy"))
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        with torch.no_grad():
            logits = model(tokens, positions, None)
        np.save(folder / "logits.npy", logits.float().numpy())
        count = sum(parameter.numel() for parameter in model.parameters())
        (folder / "parameters.json").write_text(json.dumps(count))
    return 0


def set_up() -> Setting:
    me, plan = start()
    _, torch_device = open_device(me, plan)
    join_world(me, plan, 1)
    repairs.mend()
    return Setting(torch_device, build_groups(plan, me, mesh_backends(plan)))


def load_model(setting: Setting, folder: Path, given: dict[str, Any]) -> Any:
    arguments = complete(given)
    tied = not arguments["untie_embeddings_and_output_weights"]
    plan = one_rank(arguments["num_layers"], padded_vocab_size(arguments), tied)
    me = places(plan)[0]
    seed_everything(arguments, me)
    config = build_config(arguments, plan, me, setting.device)
    (model,) = build_model(arguments, config, plan, me, setting.groups.collection, setting.device)
    read_weights(find_shards(model, me, config.num_moe_experts), open_source(folder, plan.batch.padded_vocab_size))
    return model.eval()


def open_source(folder: Path, rows: int) -> Reader:
    checkpoint, _ = find_good(folder / "checkpoints")
    if checkpoint is None:
        return HuggingFaceWeights(folder, rows).tensor
    return partial(read_parameter, SavedTensors(checkpoint))


def start() -> tuple[Place, Plan]:
    import os

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(probe.getsockname()[1]))
    torch.set_num_threads(1)
    plan = one_rank(1, 8, False)
    return places(plan)[0], plan


def one_rank(num_layers: int, rows: int, tied: bool) -> Plan:
    return Plan(
        batch=Batch(1, "token", rows),
        meshes=(Mesh(0, "cpu", 1, 1, 1, 1, 1, False, ((0, 0),)),),
        stages=(Stage(0, (Replica(0, 1, 1),), 1),),
        chain=(Chunk(0, (0, num_layers), embedding=True, head=True),),
        boundaries=(),
        tied_embeddings=tied,
    )
