"""Defects of megatron-core 0.16.1, most of which show without transformer-engine, one function each."""

from __future__ import annotations

from queue import Queue
from typing import Any

import torch
import torch.distributed as dist

from flagvega.comm.pipe import StageGroup


def mend() -> None:
    """Apply every repair; each is inert where the defect is not."""
    for repair in (
        name_missing_gemm,
        convert_split_sizes,
        admit_missing_engine,
        count_router_tokens,
        exchange_uneven_parts,
        save_without_a_manager,
    ):
        repair()


def name_missing_gemm() -> None:
    """moe_utils.py:1192 reads ``te_general_gemm``, which is never bound without transformer-engine."""
    from megatron.core.transformer.moe import moe_utils

    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None


def convert_split_sizes() -> None:
    """``maybe_move_tensor_to_cpu`` converts CUDA tensors only; all-to-all split sizes must be numbers."""
    from megatron.core.transformer.moe import token_dispatcher

    move = token_dispatcher.maybe_move_tensor_to_cpu

    def move_or_convert(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        if torch.is_tensor(tensor) and not tensor.is_cuda:
            return tensor.cpu().numpy() if as_numpy else tensor.cpu()
        return move(tensor, as_numpy, record_stream)

    token_dispatcher.maybe_move_tensor_to_cpu = move_or_convert


def admit_missing_engine() -> None:
    """multi_latent_attention.py:185 believes in transformer-engine although its import failed."""
    from megatron.core.transformer import multi_latent_attention

    if not isinstance(multi_latent_attention.TELinear, type):
        multi_latent_attention.HAVE_TE = False


def count_router_tokens() -> None:
    """router.py:341,464,489: of a per-token loss, what routers add must be scaled by all tokens of the micro-batch.

    The sequence-level balancing loss is scaled by the tokens of one sequence, and all of them by those of this
    tp and cp rank: what they weigh then depends on the micro-batch size, tp and cp.
    """
    from megatron.core.transformer.moe.router import TopKRouter

    attach, apply_z_loss = TopKRouter.attach_and_log_load_balancing_loss, TopKRouter.apply_z_loss

    def attach_for_all_tokens(self: Any, activation: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        kwargs["valid_token_count"] = activation.shape[0] * self.tp_cp_group.size()
        attached: torch.Tensor = attach(self, activation, *args, **kwargs)
        return attached

    def apply_undivided(self: Any, logits: torch.Tensor, padding_mask: torch.Tensor | None = None) -> torch.Tensor:
        group = self.tp_cp_group
        if self.calculate_per_token_loss:
            self.tp_cp_group = StageGroup(0, 1)
        try:
            applied: torch.Tensor = apply_z_loss(self, logits, padding_mask)
        finally:
            self.tp_cp_group = group
        return applied

    TopKRouter.attach_and_log_load_balancing_loss, TopKRouter.apply_z_loss = attach_for_all_tokens, apply_undivided


def exchange_uneven_parts() -> None:
    """Expert tensor parallelism gathers, and scatters back, parts of unlike sizes; gloo knows alike ones only."""
    from megatron.core.tensor_parallel import mappings

    gather, scatter = mappings._gather_along_first_dim, mappings._reduce_scatter_along_first_dim

    def gather_parts(
        part: torch.Tensor, group: Any, output_split_sizes: Any = None, use_global_buffer: bool = False
    ) -> Any:
        if output_split_sizes is None or group.size() == 1 or dist.get_backend(group) != "gloo":
            return gather(part, group, output_split_sizes, use_global_buffer)
        whole = part.new_empty(sum(output_split_sizes), *part.shape[1:])
        for i, piece in enumerate(whole.split(list(output_split_sizes))):
            if i == group.rank():
                piece.copy_(part)
            dist.broadcast(piece, dist.get_global_rank(group, i), group=group)
        return whole

    def scatter_parts(
        whole: torch.Tensor, group: Any, input_split_sizes: Any = None, use_global_buffer: bool = False
    ) -> Any:
        if input_split_sizes is None or group.size() == 1 or dist.get_backend(group) != "gloo":
            return scatter(whole, group, input_split_sizes, use_global_buffer)
        total = whole.clone()
        dist.all_reduce(total, group=group)
        return total.split(list(input_split_sizes))[group.rank()].clone()

    mappings._gather_along_first_dim, mappings._reduce_scatter_along_first_dim = gather_parts, scatter_parts


def save_without_a_manager() -> None:
    """filesystem_async.py:51 starts a process on every rank to hand over what was written, and it imports torch anew.

    That is for savers in the background. Ours waits for the writers itself, so the results never leave the rank.
    """
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    filesystem_async._results_queue = Queue()
