"""FLOPs and bytes against sums done by hand."""

from __future__ import annotations

import pytest

from flagvega.model.parameters import total_parameters
from flagvega.model.shape import Experts, ModelShape
from flagvega.model.work import backward, embedding_work, head_work, layer_work, model_flops

SHAPE = ModelShape(layers=2, hidden=8, heads=4, kv_heads=2, head_dim=2, ffn=16, vocab=32, gated=True)


def test_layer_flops_are_two_per_weight_and_token_plus_causal_attention() -> None:
    weights = 8 * (8 + 4 + 4) + 8 * 8 + 3 * 8 * 16
    attention = 2 * 2 * 8 * 64 / 2
    assert layer_work(SHAPE, 0, seq=64, samples=3).flops == 3 * 64 * (2 * weights + attention)


def test_work_of_all_ranks_of_a_mesh_is_the_work_of_one() -> None:
    whole = layer_work(SHAPE, 0, seq=64, samples=4).flops
    assert 4 * layer_work(SHAPE, 0, seq=64, samples=4, tp=2, cp=2).flops == pytest.approx(whole)


def test_backward_is_twice_forward() -> None:
    forward = layer_work(SHAPE, 0, seq=64, samples=1)
    assert backward(forward).flops == 2 * forward.flops


def test_sharding_reads_fewer_bytes_but_norms_are_held_whole() -> None:
    one, half = (layer_work(SHAPE, 0, seq=64, samples=1, tp=tp).num_bytes for tp in (1, 2))
    assert half == pytest.approx(one / 2 + 16 * 2 / 2)


def test_only_visited_experts_are_computed_and_only_held_ones_are_read() -> None:
    few, many = (ModelShape(2, 8, 4, 2, 2, 16, 32, experts=Experts(num=num, topk=2, ffn=16)) for num in (4, 8))
    router = 2 * 64 * 8 * 4
    assert layer_work(many, 0, 64, 1).flops - layer_work(few, 0, 64, 1).flops == router
    expert_bytes = 2 * 4 * 3 * 8 * 16
    assert layer_work(few, 0, 64, 1).num_bytes - layer_work(few, 0, 64, 1, ep=2).num_bytes == expert_bytes / 2


def test_embedding_computes_nothing() -> None:
    assert embedding_work(SHAPE, 64, 1).flops == 0
    assert head_work(SHAPE, 64, 1).flops == 2 * 64 * 8 * 32


def test_training_flops_are_about_six_per_parameter_and_token() -> None:
    llama = ModelShape(32, 4096, 32, 32, 128, 11008, 32000)
    per_token = model_flops(llama, seq=2048, samples=1) / 2048
    assert per_token == pytest.approx(6 * total_parameters(llama), rel=0.07)
