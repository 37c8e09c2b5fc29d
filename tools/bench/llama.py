"""What the small Llama-shaped models of benches have in common, as engine arguments; sizes are each bench's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LLAMA: Mapping[str, Any] = {
    "group_query_attention": True,
    "normalization": "RMSNorm",
    "swiglu": True,
    "disable_bias_linear": True,
    "position_embedding_type": "rope",
    "untie_embeddings_and_output_weights": True,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "calculate_per_token_loss": True,
    "global_batch_size": 8,
    "eval_iters": 0,
    "lr": 1e-3,
    "lr_decay_style": "constant",
    "log_interval": 1,
    "mock_data": True,
    "tokenizer_type": "NullTokenizer",
    "vocab_size": 2047,
    "make_vocab_size_divisible_by": 64,
    "transformer_impl": "local",
}
