"""One rank from start-up to its exit code."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch.distributed as dist

from backends.megatron import repairs
from backends.megatron.checkpoint import find_newest, load
from backends.megatron.data import build_datasets
from backends.megatron.events import Events, Metrics
from backends.megatron.groups import build_groups
from backends.megatron.loop import Datasets, StopRequest, train
from backends.megatron.pretrained import is_pretrained
from backends.megatron.progress import Extent, Position, read_extent
from backends.megatron.resume import checkpoint_folder, find_source, takes_weights_only
from backends.megatron.session import Settings, join_world, mesh_backends, open_device, seed_everything
from backends.megatron.shared import open_checkpoints
from backends.megatron.trainer import Trainer
from backends.megatron.vocabulary import padded_vocab_size, read_vocabulary
from flagvega.layout.plan import Plan
from flagvega.layout.ranks import Place, places

logger = logging.getLogger(__name__)


def run(settings: Settings, me: Place, events: Events) -> int:
    """Train as ``settings`` say; the exit code."""
    arguments, plan = settings.arguments, settings.plan
    stop = StopRequest(settings.run_dir)
    device, torch_device = open_device(me, plan)
    join_world(me, plan, arguments["distributed_timeout_minutes"])
    repairs.mend()
    groups = build_groups(plan, me, mesh_backends(plan))
    seed_everything(arguments, me)
    extent, position = read_extent(arguments), Position()
    required = bool(arguments["save_interval"])
    folder = checkpoint_folder(arguments, settings.run_dir)
    checkpoints = open_checkpoints(folder, plan, events, arguments["keep_last"], required)
    source = find_source(arguments, settings.run_dir, lambda folder: find_newest(folder, events))
    read = _open_weights(source, arguments)
    trainer = Trainer(arguments, plan, me, groups, device, torch_device, extent, read)
    if source is not None and read is None:
        load(trainer, source, position, takes_weights_only(arguments, settings.run_dir, source))
    checkpoints.saved_step = position.step
    datasets = _open_datasets(settings, trainer, extent)
    metrics = Metrics(settings.run_dir, arguments, settings.name) if me.rank == 0 else None
    events.tell("ready", step=position.step, device=str(torch_device))
    try:
        return train(trainer, datasets, extent, position, checkpoints, events, metrics, stop)
    finally:
        if metrics is not None:
            metrics.close()
        verdict = device.timing_verdict()
        if verdict:
            events.tell("invalid_timing", reason=verdict)


def _open_weights(source: Path | None, arguments: Any) -> Any:
    """A reader of full tensors when the source is a HuggingFace folder."""
    if source is None or not is_pretrained(source):
        return None
    from backends.megatron.huggingface import HuggingFaceWeights

    return HuggingFaceWeights(source, padded_vocab_size(arguments)).tensor


def _open_datasets(settings: Settings, trainer: Trainer, extent: Extent) -> Datasets:
    """Index files are written by one rank of each host, since hosts may not share a disk; then all meet."""
    arguments = settings.arguments
    _, num_train = extent.totals()
    num_valid = arguments["eval_iters"] * extent.global_batch_size if arguments["eval_interval"] else 0
    train_set, valid_set, _ = build_datasets(
        arguments,
        read_vocabulary(arguments),
        (num_train, num_valid, 0),
        cache=settings.run_dir / "cache",
        owner=_is_first_of_host(settings.plan, trainer.me),
        barrier=dist.barrier,
    )
    needs = trainer.has_ends or arguments["reset_attention_mask"]
    return Datasets(train_set, valid_set) if needs else Datasets(None, None)


def _is_first_of_host(plan: Plan, me: Place) -> bool:
    return me == next(place for place in places(plan) if place.node == me.node)
