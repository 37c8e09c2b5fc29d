"""Faults put into the rank program on purpose, to show that the gate finds them. Applied in a rank before it starts."""

from __future__ import annotations

import dataclasses
from typing import Any

from backends.megatron import gradients, optimizer, trainer, weights
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
    optimizer.share_norm = lambda built, groups: None


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
