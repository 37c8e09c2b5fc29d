"""Defects of megatron-core 0.16.1 that show without transformer-engine, one function each."""

from __future__ import annotations

from typing import Any

import torch


def mend() -> None:
    """Apply every repair; each is inert where the defect is not."""
    for repair in (name_missing_gemm, convert_split_sizes, admit_missing_engine):
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
