"""Faults put into the rank program on purpose, to show that the gate finds them. Applied in a rank before it starts."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from typing import Any

import psutil

from backends.megatron import gradients, optimizer, trainer, weights
from backends.megatron.checkpoint import Checkpoints
from flagvega.comm import reshard
from flagvega.comm.pipe import Pipe


def keep_gradients_at_boundaries() -> None:
    """A mean loss is not rescaled where dp changes."""
    build = Pipe.__init__

    def build_without_scale(self: Pipe, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        self.backward_scale = 1.0

    Pipe.__init__ = build_without_scale  # type: ignore[method-assign]


def count_replicas_in_norm() -> None:
    """Every replica's gradients count in the norm."""
    gradients._replica = lambda part, groups: 0


def leave_norm_alone() -> None:
    """The optimizer's own norm, over what it takes for the whole model."""
    optimizer.share_norm = lambda *_: None


def draw_by_tp_rank() -> None:
    """Every tp rank draws its part as if it were the first rows."""
    find = weights.find_shards

    def find_first(*args: Any) -> list[weights.Shard]:
        return [dataclasses.replace(shard, index=0) for shard in find(*args)]

    trainer.find_shards = find_first


def forget_tied_stage() -> None:
    """Tied embeddings are not summed over first and last stage."""
    gradients._sum_tied = lambda models, me, groups, is_sharded: None


def divide_by_own_tokens() -> None:
    """Gradients are divided by the tokens of one replica."""
    make = gradients.make_finalizer

    def make_local(plan: Any, me: Any, groups: Any) -> Any:
        finalize = make(plan, me, groups)

        def finalize_twice(models: list[Any], *args: Any, **kwargs: Any) -> None:
            finalize(models, *args, **kwargs)
            for model in models:
                model.scale_gradients(float(me.mesh.dp))

        return finalize_twice

    trainer.make_finalizer = make_local


def forget_zigzag() -> None:
    """Under context parallelism ranks exchange rows as if each held one run of the sequence."""

    def one_run(sequence: int, cp: int, rank: int) -> tuple[tuple[int, int], ...]:
        size = sequence // cp
        return ((rank * size, (rank + 1) * size),)

    reshard.sequence_runs = one_run


def fail_on_rank_2() -> None:
    """One rank fails in the middle of a step; the others wait for it."""

    def fail(*_: Any) -> None:
        raise ArithmeticError("a fault on purpose")

    if os.environ["LOCAL_RANK"] == "2":
        trainer.Trainer._reduce_loss = fail  # type: ignore[assignment, method-assign]


def print_updated() -> None:
    """No fault: a rank tells for how many parameters its optimizer is paced."""

    def tell(_: Any, num_parameters: int) -> None:
        print("updated", num_parameters, flush=True)

    trainer.pace_optimizer = tell


def print_processes() -> None:
    """No fault: a rank tells how many processes it has once it has saved."""
    save = Checkpoints.save

    def save_and_tell(self: Checkpoints, *args: Any) -> None:
        save(self, *args)
        print("processes", len(psutil.Process().children()), flush=True)

    Checkpoints.save = save_and_tell  # type: ignore[method-assign]


def hang() -> None:
    """Nothing happens any more."""
    time.sleep(1e6)


def kill_server() -> None:
    """The first rank kills the process that forked it; all go on for ever."""
    print(os.getpid(), flush=True)
    if os.environ["LOCAL_RANK"] == "0":
        time.sleep(0.5)
        os.kill(os.getppid(), signal.SIGKILL)
    hang()
