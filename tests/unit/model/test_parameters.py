"""Parameter counts against those that the models' publishers give."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from flagvega.model.parameters import active_parameters, layer_parameters, total_parameters
from flagvega.model.shape import Experts, LatentAttention, ModelShape

ROWS = list(csv.DictReader((Path(__file__).parents[2] / "data" / "models.csv").open(encoding="utf-8")))
EXACT = [row for row in ROWS if row["difference_percent"] == "0.000"]


def experts_of(row: dict[str, str]) -> Experts | None:
    if not row["moe_experts"]:
        return None
    dense = int(row["dense_first_layers"] or 0)
    return Experts(
        num=int(row["moe_experts"]),
        topk=int(row["moe_topk"]),
        ffn=int(row["moe_ffn"]),
        shared_ffn=int(row["shared_experts"] or 0) * int(row["moe_ffn"]),
        layers=tuple(range(dense, int(row["layers"]))),
        router_bias=row["family"] == "deepseek-v3",
    )


def latent_of(row: dict[str, str]) -> LatentAttention | None:
    if not row["mla_kv_lora_rank"]:
        return None
    rank = row["mla_q_lora_rank"]
    widths = ("mla_kv_lora_rank", "mla_qk_nope_head_dim", "mla_qk_rope_head_dim", "mla_v_head_dim")
    return LatentAttention(int(rank) if rank else None, *(int(row[name]) for name in widths))


def shape_of(row: dict[str, str]) -> ModelShape:
    learned = int(row["max_seq"]) if row["position"] == "learned" else 0
    family = row["family"]
    return ModelShape(
        layers=int(row["layers"]),
        hidden=int(row["hidden"]),
        heads=int(row["heads"]),
        kv_heads=int(row["kv_heads"]),
        head_dim=int(row["head_dim"] or 0),
        ffn=int(row["ffn"]),
        vocab=int(row["vocab"]),
        tied=row["tied"] == "yes",
        norm="LayerNorm" if row["norm"] == "LayerNorm" else "RMSNorm",
        norms_per_layer=4 if family == "gemma2" else 2,
        gated=row["activation"] in ("swiglu", "geglu"),
        qkv_bias=row["qkv_bias"] == "yes",
        linear_bias=family in ("gpt2", "opt", "gpt-neo"),
        qk_norm=family.startswith("qwen3"),
        positions=learned + (2 if family == "opt" else 0),
        experts=experts_of(row),
        latent=latent_of(row),
    )


def test_the_table_still_has_its_rows() -> None:
    assert len(EXACT) >= 35


@pytest.mark.parametrize("row", EXACT, ids=lambda row: row["model"])
def test_parameter_count_equals_the_published_one(row: dict[str, str]) -> None:
    assert total_parameters(shape_of(row)) == int(row["published_parameters"])


def test_active_parameters_leave_out_experts_that_a_token_does_not_visit() -> None:
    mixtral = next(row for row in ROWS if row["model"] == "mixtral-8x7b")
    assert active_parameters(shape_of(mixtral)) == pytest.approx(12.9e9, rel=0.01)


def test_a_tied_head_has_no_parameters_of_its_own() -> None:
    untied = ModelShape(layers=2, hidden=8, heads=2, kv_heads=1, head_dim=4, ffn=16, vocab=32)
    tied = ModelShape(layers=2, hidden=8, heads=2, kv_heads=1, head_dim=4, ffn=16, vocab=32, tied=True)
    assert total_parameters(untied) - total_parameters(tied) == 32 * 8


def test_layer_parts_name_what_is_held_whole() -> None:
    shape = ModelShape(layers=1, hidden=8, heads=2, kv_heads=1, head_dim=4, ffn=16, vocab=32, experts=Experts(4, 2, 6))
    parts = layer_parameters(shape, 0)
    assert (parts.mlp, parts.experts, parts.router, parts.norms) == (0, 4 * 3 * 8 * 6, 8 * 4, 16)
