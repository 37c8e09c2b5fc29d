"""What happens to gradients between the backward pass and the optimizer, on unlike meshes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from backends.megatron.groups import Groups
from flagvega.layout.plan import Plan
from flagvega.layout.ranks import Place
from flagvega.platform import Device


def make_finalizer(plan: Plan, me: Place, groups: Groups) -> Callable[..., None]:
    """Stands in for megatron-core's ``finalize_model_grads``, which assumes one mesh in two places.

    The embeddings of first and last stage may be cut differently, and the token count lives on the
    last stage, whose replicas are not those of the others.
    """
    from megatron.core.distributed import finalize_model_grads

    counts_tokens = me.stage.id == plan.chain[-1].stage and me.tp == 0

    def finalize(models: list[Any], num_tokens: Tensor | None = None, pg_collection: Any = None,
                 force_all_reduce: bool = False) -> None:  # fmt: skip
        finalize_model_grads(models, None, pg_collection=pg_collection, force_all_reduce=force_all_reduce)
        if groups.tied is not None:
            _sum_tied(models, me, groups, plan.distributed_optimizer)
        if num_tokens is not None:
            total = (num_tokens if counts_tokens else torch.zeros_like(num_tokens)).cpu()
            dist.all_reduce(total)
            for model in models:
                model.scale_gradients(1.0 / max(int(total), 1))

    return finalize


def _sum_tied(models: list[Any], me: Place, groups: Groups, is_sharded: bool) -> None:
    """Sum the tied embedding's gradient over first and last stage, whatever their tp and dp.

    Each stage contributes every element once: its rows by tp rank, and of these the part that this
    dp rank has reduced (all of it on dp rank 0 without the distributed optimizer).
    """
    for model in models:
        inner = model.module
        while hasattr(inner, "module"):
            inner = inner.module
        if not (inner.pre_process or inner.post_process):
            continue
        gradient = inner.shared_embedding_or_output_weight().main_grad
        rows, hidden = gradient.shape
        whole = torch.zeros(rows * me.mesh.tp, hidden, dtype=torch.float32)
        first, last = _reduced_range(model, inner.shared_embedding_or_output_weight(), groups, is_sharded)
        mine = whole[me.tp * rows : (me.tp + 1) * rows]
        mine.view(-1)[first:last] = gradient.reshape(-1)[first:last].float().cpu()
        dist.all_reduce(whole, group=groups.tied)
        gradient.copy_(mine)


def _reduced_range(model: Any, weight: Tensor, groups: Groups, is_sharded: bool) -> tuple[int, int]:
    """Half-open range of the flat gradient that holds the sum over this rank's replicas."""
    replica, num_replicas = groups.collection.dp_cp.rank(), groups.collection.dp_cp.size()
    if not is_sharded:
        return (0, weight.numel()) if replica == 0 else (0, 0)
    for buffer in model.buffers:
        if weight in buffer.param_index_map:
            start, stop, bucket_id = buffer.param_index_map[weight]
            bucket = buffer.buckets[bucket_id]
            size = bucket.grad_data.numel() // num_replicas
            first = bucket.offset + replica * size
            low, high = max(start, first), min(stop, first + size)
            return (low - start, high - start) if low < high else (0, 0)
    raise LookupError("the tied embedding is in no gradient buffer")


def share_norm(optimizer: Any, groups: Groups, device: Device) -> None:
    """Make the optimizer's gradient norm that of the whole model.

    megatron-core reduces over its model-parallel group, once per sub-optimizer. Here every rank takes
    part in one reduction over the world, and each shard of a parameter counts once.
    """

    def counted() -> list[Tensor]:
        gradients: list[Tensor] = []
        for part in optimizer.chained_optimizers:
            if not part.config.use_distributed_optimizer and _replica(part, groups) > 0:
                continue
            gradients += part.get_main_grads_for_grad_norm()
        return gradients

    def reduce(local: float) -> float:
        total = torch.tensor([local], dtype=torch.float64)
        dist.all_reduce(total)
        device.begin()
        return float(total)

    def get_grad_norm() -> float:
        return math.sqrt(reduce(sum(_square_sum(gradient) for gradient in counted())))

    def count_zeros() -> float:
        return reduce(sum(float((gradient == 0).sum()) for gradient in counted()))

    optimizer.get_grad_norm, optimizer.count_zeros = get_grad_norm, count_zeros


def _square_sum(tensor: Tensor) -> float:
    """Sum of squares in double precision, in parts: a double copy of a whole embedding may not fit."""
    size = 2**14 if tensor.device.type == "cpu" else 2**22
    parts = [part.double().square().sum() for part in tensor.reshape(-1).split(size)]
    return float(torch.stack(parts).sum()) if parts else 0.0


def _replica(part: Any, groups: Groups) -> int:
    has_experts = any(group.get("is_expert_parallel") for group in part.param_groups)
    group = groups.collection.expt_dp if has_experts else groups.collection.dp_cp
    return int(group.rank())
