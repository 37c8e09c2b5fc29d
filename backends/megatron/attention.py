"""Core attention on torch's scaled_dot_product_attention, with context parallelism.

megatron-core's own unfused attention materialises the scores, refuses context parallelism and
unequal head dimensions. Under context parallelism a rank holds chunks r and 2 * cp - 1 - r of the
sequence; it gathers keys and values over the cp group and masks by position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from flagvega.comm.reshard import sequence_runs


class CoreAttention(torch.nn.Module):
    """Drop-in for megatron-core's DotProductAttention."""

    def __init__(self, config: Any, layer_number: int, attn_mask_type: Any, attention_type: str,
                 attention_dropout: float | None = None, softmax_scale: float | None = None, pg_collection: Any = None,
                 **_: Any) -> None:  # fmt: skip
        super().__init__()
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.scale = softmax_scale
        self.is_causal = attn_mask_type.name == "causal"
        self.cp_group = pg_collection.cp

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
                attn_mask_type: Any = None, attention_bias: Tensor | None = None,
                packed_seq_params: Any = None) -> Tensor:  # fmt: skip
        """``[sequence, samples, heads, head_dim] x 3 -> [sequence, samples, heads * head_dim]``.

        ``attention_mask`` is True where attention is barred, or None for plain causal attention.
        """
        allowed = None if attention_mask is None else ~attention_mask
        if self.cp_group.size() > 1:
            key, value, allowed = self._gather(key, value)
        q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        out = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=allowed, dropout_p=self.dropout if self.training else 0.0,
            is_causal=allowed is None and self.is_causal, scale=self.scale, enable_gqa=k.shape[1] != q.shape[1],
        )  # fmt: skip
        return out.permute(2, 0, 1, 3).reshape(query.shape[0], query.shape[1], -1)

    def _gather(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

        cp, sequence = self.cp_group.size(), key.shape[0] * self.cp_group.size()
        key, value = (
            gather_from_sequence_parallel_region(tensor.contiguous(), True, group=self.cp_group)
            for tensor in (key, value)
        )
        positions = [_positions(sequence, cp, rank, key.device) for rank in range(cp)]
        allowed = positions[self.cp_group.rank()][:, None] >= torch.cat(positions)[None, :]
        return key, value, allowed


def _positions(sequence: int, cp: int, rank: int, device: torch.device) -> Tensor:
    return torch.cat([torch.arange(*run, device=device) for run in sequence_runs(sequence, cp, rank)])
