"""Layer norms on plain torch: megatron-core's wrapper refuses sequence parallelism and 1 + gamma."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class Norm(torch.nn.Module):
    """LayerNorm or RMSNorm over the last dimension, as ``config.normalization`` says.

    Its parameters are marked as sequence parallel, so that their gradients are summed over tp.
    """

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.is_rms = config.normalization == "RMSNorm"
        self.offset = 1.0 if config.layernorm_zero_centered_gamma else 0.0
        self.weight = torch.nn.Parameter(torch.full((hidden_size,), 1.0 - self.offset, dtype=config.params_dtype))
        self.bias = None if self.is_rms else torch.nn.Parameter(torch.zeros(hidden_size, dtype=config.params_dtype))
        for parameter in self.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """``[..., hidden] -> [..., hidden]``."""
        weight = self.weight + self.offset if self.offset else self.weight
        if self.is_rms:
            return functional.rms_norm(x, weight.shape, weight, self.eps)
        return functional.layer_norm(x, weight.shape, weight, self.bias, self.eps)
