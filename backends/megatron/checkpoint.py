"""Checkpoints that any layout can resume: torch_dist tensors by global name, and where the run was.

A checkpoint is written beside its place and renamed; its manifest (sizes and hashes) is written last.
At resume the newest whose manifest holds is taken, damaged ones are named and passed over.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from backends.megatron.events import Events
from backends.megatron.moments import read_moments, state_names, write_moments
from backends.megatron.progress import Position
from backends.megatron.resume import STATE, find_good, none_is_good, read_state
from backends.megatron.shape import model_facts
from backends.megatron.trainer import Trainer
from flagvega.layout.codec import plan_hash
from flagvega.records import write_json, write_manifest

SCHEMA = 1


@dataclass
class Checkpoints:
    """The checkpoints of a run."""

    directory: Path
    events: Events
    keep_last: int | None = None
    saved_step: int = -1

    def save(self, trainer: Trainer, position: Position) -> None:
        """Write ``iter_<step>``; collective over the world."""
        if position.step == self.saved_step:
            return
        final = self.directory / f"iter_{position.step:07d}"
        scratch = self.directory / f".{final.name}.partial"
        _on_first_rank(lambda: _prepare(scratch))
        _write(trainer, position, scratch)
        _on_first_rank(lambda: _publish(scratch, final, self.keep_last))
        self.saved_step = position.step
        self.events.tell("checkpoint", step=position.step, path=str(final))


def find_newest(directory: Path, events: Events) -> Path | None:
    """The newest good checkpoint, the same on every rank; None when there is none at all.

    VerdictError when there are some and none is good.
    """
    found: list[Any] = [None, None]
    if dist.get_rank() == 0:
        found = list(find_good(directory))
        for path, reason in found[1].items():
            events.tell("damaged_checkpoint", path=str(path), reason=reason)
    dist.broadcast_object_list(found, src=0)
    good, damaged = found
    if good is None and damaged:
        raise none_is_good(directory, damaged)
    newest: Path | None = good
    return newest


def load(trainer: Trainer, path: Path, position: Position, weights_only: bool = False) -> None:
    """Continue from ``path``, written on any layout; ``weights_only`` starts anew with its weights."""
    state = read_state(path, _describe_model(trainer))
    names = () if weights_only else tuple(state["moments"])
    content = _content(trainer, names)
    from megatron.core import dist_checkpointing

    # Meshes may read one tensor cut in unlike ways, which the check of access refuses.
    loaded = dist_checkpointing.load(content, str(path), validate_access_integrity=False)
    for i, chunk in enumerate(trainer.chunks):
        chunk.load_state_dict(loaded["model"][str(i)])
    if weights_only:
        trainer.optimizer.reload_model_params()
        return
    parameters = [shard.parameter for shard in trainer.shards]
    moments = {name: [loaded["moments"][name][str(i)] for i in range(len(parameters))] for name in names}
    write_moments(trainer.optimizer, parameters, moments, state["num_updates"])
    trainer.num_updates = state["num_updates"]
    _restore_schedule(trainer, state["scheduler"])
    _restore_scaler(trainer.optimizer, state["scaler"])
    _restore_randomness(trainer, path, state)
    position.step, position.consumed_samples = state["step"], state["consumed_samples"]


def _on_first_rank(work: Any) -> None:
    if dist.get_rank() == 0:
        work()
    dist.barrier()


def _prepare(scratch: Path) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)


def _publish(scratch: Path, final: Path, keep_last: int | None) -> None:
    write_manifest(scratch)
    shutil.rmtree(final, ignore_errors=True)
    scratch.rename(final)
    if keep_last:
        for old in sorted(final.parent.glob("iter_*"))[:-keep_last]:
            shutil.rmtree(old)


def _write(trainer: Trainer, position: Position, scratch: Path) -> None:
    from megatron.core import dist_checkpointing

    names = state_names(trainer.arguments["optimizer"], trainer.config.params_dtype != torch.float32)
    _gather_weights(trainer)
    dist_checkpointing.save(_drop_copies(trainer, _content(trainer, names)), str(scratch))
    rng = {"cpu": torch.get_rng_state(), "device": trainer.device.namespace.get_rng_state()}
    (scratch / "rng").mkdir(exist_ok=True)
    torch.save(rng, scratch / "rng" / f"rank-{dist.get_rank()}.pt")
    if dist.get_rank() == 0:
        write_json(scratch / STATE, _describe(trainer, position, names))
    dist.barrier()


def _gather_weights(trainer: Trainer) -> None:
    """With overlap_param_gather an update would reach the other replicas in the next forward pass only."""
    for model in trainer.models:
        if model.ddp_config.overlap_param_gather:
            model.start_param_sync(force_sync=True)


def _content(trainer: Trainer, names: tuple[str, ...]) -> dict[str, Any]:
    """Model and optimizer state as sharded tensors with global names."""
    metadata = {
        "dp_cp_group": trainer.groups.collection.dp_cp,
        "non_homogeneous_layers": True,
        "singleton_local_shards": False,
    }
    model = {str(i): chunk.sharded_state_dict(metadata=metadata) for i, chunk in enumerate(trainer.chunks)}
    return {"model": model, "moments": _sharded_moments(trainer, model, names)}


def _drop_copies(trainer: Trainer, content: dict[str, Any]) -> dict[str, Any]:
    """Without the head's copy of a tied embedding: the first stage saves it, perhaps cut in another way."""
    for i, chunk in enumerate(trainer.chunks):
        if chunk.share_embeddings_and_output_weights and chunk.post_process and not chunk.pre_process:
            del content["model"][str(i)]["output_layer.weight"]
            copy = chunk.output_layer.weight
            index = next(j for j, shard in enumerate(trainer.shards) if shard.parameter is copy)
            for tensors in content["moments"].values():
                del tensors[str(index)]
    return content


def _sharded_moments(trainer: Trainer, model: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    from megatron.core.dist_checkpointing.optimizer import (
        get_param_id_to_sharded_param_map,
        make_sharded_optimizer_tensor,
    )

    parameters = [shard.parameter for shard in trainer.shards]
    if not names or not parameters:
        return {name: {} for name in names}
    places = get_param_id_to_sharded_param_map(model, parameters)
    moments = read_moments(trainer.optimizer, parameters, names)
    return {
        name: {
            str(i): make_sharded_optimizer_tensor(places[i], tensor, f"optimizer.{name}")
            for i, tensor in enumerate(tensors)
        }
        for name, tensors in moments.items()
    }


def _describe(trainer: Trainer, position: Position, names: tuple[str, ...]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        **asdict(position),
        "num_updates": trainer.num_updates,
        "moments": list(names),
        "scheduler": {
            name: float(v) if isinstance(v, torch.Tensor) else v for name, v in trainer.scheduler.state_dict().items()
        },
        "scaler": _describe_scaler(trainer.optimizer),
        "plan": plan_hash(trainer.plan),
        "model": _describe_model(trainer),
    }


def _describe_model(trainer: Trainer) -> dict[str, Any]:
    """What decides the names and shapes of the tensors."""
    return model_facts(trainer.arguments, trainer.plan.batch.padded_vocab_size, trainer.plan.tied_embeddings)


def _restore_schedule(trainer: Trainer, saved: Mapping[str, Any]) -> None:
    """Go on from the same sample; the schedule itself is this run's YAML, which may train for longer."""
    if not trainer.arguments["use_checkpoint_opt_param_scheduler"]:
        saved = {**trainer.scheduler.state_dict(), "num_steps": saved["num_steps"]}
    trainer.scheduler.load_state_dict(saved)


def _scalers(optimizer: Any) -> list[Any]:
    return [part.grad_scaler for part in optimizer.chained_optimizers if getattr(part, "grad_scaler", None) is not None]


def _describe_scaler(optimizer: Any) -> dict[str, Any]:
    for scaler in _scalers(optimizer):
        return {name: float(value) for name, value in scaler.state_dict().items()}
    return {}


def _restore_scaler(optimizer: Any, state: Mapping[str, Any]) -> None:
    for scaler in _scalers(optimizer):
        if state:
            ints = ("growth_tracker", "hysteresis_tracker")
            restored = {name: int(value) if name in ints else torch.tensor([value]) for name, value in state.items()}
            scaler.load_state_dict(restored)


def _restore_randomness(trainer: Trainer, path: Path, state: Mapping[str, Any]) -> None:
    """Dropout goes on with the same numbers only where every rank still does the same work."""
    file = path / "rng" / f"rank-{dist.get_rank()}.pt"
    if state["plan"] == plan_hash(trainer.plan) and file.exists():
        rng = torch.load(file, weights_only=True)
        torch.set_rng_state(rng["cpu"])
        trainer.device.namespace.set_rng_state(rng["device"])
