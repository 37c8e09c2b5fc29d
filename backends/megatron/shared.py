"""Whether the hosts of a run share the folder that checkpoints are written to: each rank writes its own part there."""

from __future__ import annotations

import secrets
from pathlib import Path

import torch
import torch.distributed as dist

from backends.megatron.checkpoint import Checkpoints
from backends.megatron.events import Events
from backends.megatron.progress import Position
from backends.megatron.trainer import Trainer
from flagvega.errors import Fault, PreflightError
from flagvega.layout.plan import Plan
from flagvega.layout.ranks import places

SHARE = "give all hosts one folder: train.system.checkpoint.save, or a shared experiment.exp_dir"


class NoCheckpoints(Checkpoints):
    """For hosts that share no folder: what they wrote would be in pieces that nobody can put together."""

    def save(self, trainer: Trainer, position: Position) -> None:
        """Write nothing."""


def open_checkpoints(directory: Path, plan: Plan, events: Events, keep_last: int | None, required: bool) -> Checkpoints:
    """The checkpoints in ``directory``; none, with an event, where hosts do not share it. Collective over the world.

    :raises PreflightError: they do not, and checkpoints are ``required``.
    """
    if is_shared(directory, plan):
        return Checkpoints(directory, events, keep_last)
    what = "the hosts do not share this folder, so checkpoints would be in pieces"
    if required:
        raise PreflightError(Fault(what, str(directory), SHARE))
    events.tell("no_checkpoints", reason=f"{directory}: {what}: none is written, not even at a stop; {SHARE}")
    return NoCheckpoints(directory, events, keep_last)


def is_shared(directory: Path, plan: Plan) -> bool:
    """Whether every rank sees what the first one writes there."""
    if len({place.node for place in places(plan)}) == 1:
        return True
    name = [f".seen-by-all-{secrets.token_hex(8)}"]
    dist.broadcast_object_list(name, src=0)
    mark = directory / name[0]
    if dist.get_rank() == 0:
        directory.mkdir(parents=True, exist_ok=True)
        mark.touch()
    dist.barrier()
    seen = torch.tensor(int(mark.exists()))
    dist.all_reduce(seen, dist.ReduceOp.MIN)
    if dist.get_rank() == 0:
        mark.unlink()
    return bool(seen)
