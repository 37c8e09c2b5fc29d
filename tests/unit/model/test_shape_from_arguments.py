"""The counted model is the one that megatron-core builds."""

from __future__ import annotations

from typing import Any

import pytest

from backends.megatron.shape import shape_from_arguments
from flagvega.model.parameters import total_parameters

LLAMA = {
    "num_layers": 3,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "group_query_attention": True,
    "num_query_groups": 2,
    "vocab_size": 100,
    "make_vocab_size_divisible_by": 16,
    "swiglu": True,
    "normalization": "RMSNorm",
    "position_embedding_type": "rope",
    "disable_bias_linear": True,
    "untie_embeddings_and_output_weights": True,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({}, 0),
        ({"untie_embeddings_and_output_weights": False}, -112 * 32),
        ({"add_qkv_bias": True}, 3 * (32 + 2 * 16)),
        ({"group_query_attention": False}, 3 * 2 * 16 * 32),
        ({"position_embedding_type": "learned_absolute"}, 64 * 32),
        ({"qk_layernorm": True}, 3 * 2 * 8),
        ({"make_vocab_size_divisible_by": 128}, 2 * 16 * 32),
        ({"num_experts": 4, "moe_layer_freq": [0, 1, 0]}, 3 * 3 * 32 * 64 + 32 * 4),
        ({"num_experts": 4, "moe_layer_freq": 2}, 2 * (3 * 3 * 32 * 64 + 32 * 4)),
    ],
)
def test_each_argument_changes_the_parameters_it_should(change: dict[str, Any], difference: int) -> None:
    before = total_parameters(shape_from_arguments(LLAMA))
    assert total_parameters(shape_from_arguments({**LLAMA, **change})) - before == difference


def test_swiglu_without_a_width_has_megatrons_two_thirds() -> None:
    assert shape_from_arguments(LLAMA).ffn == 64
