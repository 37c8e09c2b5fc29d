"""Mistakes in engine arguments, as users make them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.megatron.engine import engine
from flagvega.cluster.nodes import Cluster, Node
from flagvega.errors import ConfigError
from flagvega.layout.build import build_plan
from flagvega.layout.check import check_plan

from .conftest import MakeSpec, make

MISTAKES: list[tuple[dict[str, Any], str, str]] = [
    ({"num_attention_heads": 5}, "hidden_size 64 is no multiple of num_attention_heads 5", "num_attention_heads 4"),
    ({"group_query_attention": True, "num_query_groups": 3}, "no multiple of num_query_groups 3", "legal: 1, 2, 4"),
    ({"num_query_groups": 2}, "has no effect without group_query_attention", "group_query_attention: true"),
    ({"group_query_attention": True}, "group_query_attention without num_query_groups", "1, 2, 4"),
    ({"max_position_embeddings": 16}, "max_position_embeddings 16 is less than seq_length 32", "at least 32"),
    ({"hidden_dim_multiplier": 1.3}, "hidden_dim_multiplier needs multiple_of", "multiple_of: 256"),
    ({"hidden_dropout": 1.0}, "'hidden_dropout' is 1.0", "less than 1"),
    ({"num_layers": 0}, "'num_layers' is 0", "more than 0"),
    ({"lr": 0.0}, "'lr' is 0.0", "more than 0"),
    ({"min_lr": 1.0}, "min_lr 1.0 is more than lr 0.001", "0 to 0.001"),
    ({"bf16": True, "fp16": True}, "'bf16' and 'fp16' exclude each other", "keep one"),
    ({"swiglu": True, "squared_relu": True}, "'swiglu' and 'squared_relu' exclude each other", "keep one"),
    ({"train_samples": 80}, "both say how long to train", "keep one"),
    ({"lr_warmup_iters": 10}, "lr_warmup_iters 10 is not less than the 10", "0 to 9"),
    ({"lr_warmup_iters": 2, "lr_warmup_fraction": 0.1}, "both say how long to warm up", "keep one"),
    ({"lr_warmup_fraction": 1.5}, "'lr_warmup_fraction' is 1.5", "less than 1"),
    ({"lr_warmup_samples": 5}, "'lr_warmup_samples' does not go with 'train_iters'", "lr_warmup_iters"),
    ({"rampup_batch_size": [2, 2, 100]}, "does not go with 'train_iters'", "train_samples"),
    ({"lr_decay_style": "WSD"}, "WSD needs lr_wsd_decay_iters", "add lr_wsd_decay_iters: 1"),
    ({"start_weight_decay": 0.1}, "has no effect on a constant weight decay", "linear or cosine"),
    ({"weight_decay_incr_style": "cosine"}, "needs start_weight_decay and end_weight_decay", "add both"),
    ({"global_batch_size": 7}, "global_batch_size 7 is no multiple of micro_batch_size 2", "8 would fit"),
    ({"no_position_embedding": True}, "says no more what it did", "rope or none"),
    (
        {"use_rotary_position_embeddings": True, "position_embedding_type": "none"},
        "position_embedding_type none beside use_rotary_position_embeddings",
        "keep one",
    ),
    ({"overlap_param_gather": True}, "'overlap_param_gather' needs use_distributed_optimizer", "optimizer: true"),
    (
        {"use_distributed_optimizer": True, "optimizer": "sgd"},
        "distributed optimizer is Adam, not sgd",
        "optimizer: adam",
    ),
    ({"fp32_residual_connection": True}, "'fp32_residual_connection' needs bf16 or fp16", "add bf16: true"),
    ({"rotary_percent": 2.0}, "'rotary_percent' is 2.0", "up to 1"),
    ({"num_experts": 2, "moe_router_topk": 4}, "moe_router_topk 4 is more than num_experts 2", "1 to 2"),
    ({"expert_model_parallel_size": 2}, "expert parallelism without experts", "num_experts"),
    ({"add_bias_linear": True, "disable_bias_linear": True}, "'add_bias_linear' and its negation", "keep one"),
    ({"fp8_format": "hybrid"}, "'fp8_format' is known, but not supported", "write bf16"),
    ({"layernorm_epsilon": 1e-6}, "'layernorm_epsilon' is known, but not supported", "write norm_epsilon"),
    ({"hetero_mode": "pp"}, "'hetero_mode' is known, but not supported", "hetero_process_meshes"),
    ({"wandb_api_key": "x"}, "'wandb_api_key' is known, but not supported", "WANDB_API_KEY"),
    ({"recompute_granularity": "full"}, "full recompute needs recompute_method", "recompute_num_layers: 1"),
    ({"recompute_granularity": "selective", "recompute_method": "block"}, "takes no method", "granularity: full"),
    ({"tokenizer_type": "TikTokenizer"}, "TikTokenizer is not supported", "HuggingFaceTokenizer"),
    ({"split": "a,b", "mock_data": False, "data_path": ["x"]}, "split is not three shares", "90,5,5"),
    ({"hetero_pipeline_layer_split": [4], "pipeline_model_parallel_layout": "EttttL"}, "both say how layers", "keep"),
    ({"pipeline_model_parallel_layout": "Ett|ttL"}, "has 2 stages", "for example 'EttttL'"),
    ({"num_virtual_stages_per_pipeline_rank": 2}, "needs a pipeline, but there is one stage", "remove it"),
    ({"pipeline_model_parallel_size": 2, "num_layers_per_virtual_pipeline_stage": 3}, "is not pp 2 x", "write 2"),
    ({"enable_hetero": True}, "needs five numbers", "[tp, cp, ep, dp, pp"),
    ({"enable_hetero": True, "hetero_process_meshes": [1, 1, 1, 1]}, "found 4", "[tp, cp, ep, dp, pp"),
    (
        {"enable_hetero": True, "hetero_process_meshes": [1] * 10, "hetero_device_types": ["cpu"]},
        "hetero_device_types has 1 entries, but hetero_process_meshes has 2 meshes",
        "give 2 entries",
    ),
    (
        {"enable_hetero": True, "hetero_process_meshes": [1] * 5, "hetero_device_types": ["A8000"]},
        "unknown chip 'A8000'",
        "did you mean",
    ),
    (
        {"enable_hetero": True, "hetero_process_meshes": [1] * 10, "pipeline_model_parallel_size": 3},
        "pipeline_model_parallel_size 3 is not the sum of the meshes' pp, 2",
        "write 2",
    ),
]


def test_a_right_spec_has_no_faults() -> None:
    assert list(engine.check(make())) == []


@pytest.mark.parametrize(("changes", "what", "fix"), MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_is_named_with_its_line_and_a_remedy(changes: dict[str, Any], what: str, fix: str) -> None:
    faults = [fault for fault in engine.check(make(**changes)) if what in fault.what]
    assert faults, [str(fault) for fault in engine.check(make(**changes))]
    assert "t.yaml:" in faults[0].where
    assert fix in faults[0].fix


@pytest.mark.parametrize("name", ["num_layers", "hidden_size", "lr", "seq_length", "global_batch_size", "train_iters"])
def test_what_every_run_needs_is_asked_for(name: str) -> None:
    spec = make(without=(name,))
    assert any(f"'{name}'" in fault.what for fault in engine.check(spec))
    if name not in ("lr", "train_iters"):
        with pytest.raises(ConfigError):
            engine.request(spec)


def test_all_faults_come_at_once(make_spec: MakeSpec) -> None:
    spec = make_spec(num_attention_heads=5, min_lr=1.0, fp8_format="hybrid", rotary_percent=2.0)
    assert len(engine.check(spec)) == 4


def test_there_must_be_something_to_train_on(make_spec: MakeSpec) -> None:
    assert "no training data" in str(engine.check(make_spec(without=("mock_data",)))[0])


def test_data_that_is_not_here_is_a_matter_of_the_run_not_of_the_arguments(make_spec: MakeSpec) -> None:
    spec = make_spec(without=("mock_data",), data_path=["/nowhere/text_document"])
    assert list(engine.check(spec)) == []
    fault = engine.check_files(spec)[0]
    assert "/nowhere/text_document" in fault.what
    assert "t.yaml:" in fault.where


@pytest.mark.parametrize("name", ["standalone_embedding_stage", "multi_latent_attention", "freeze_LM"])
def test_an_unsupported_switch_that_is_off_asks_for_nothing(make_spec: MakeSpec, name: str) -> None:
    assert list(engine.check(make_spec(**{name: False}))) == []
    assert len(engine.check(make_spec(**{name: True}))) == 1


def test_ignored_keys_and_kernels_that_are_not_there_are_warned_of(make_spec: MakeSpec) -> None:
    spec = make_spec(use_flash_attn=True, log_throughput=True, ckpt_format="torch", log_params_norm=False)
    plan = build_plan(engine.request(spec), Cluster((Node("a", ("cpu",)),)))
    found = engine.warnings(spec, plan)
    assert len(found) == 3
    assert all(warning.startswith("t.yaml:") for warning in found)
    assert any("use_flash_attn is not there on cpu" in warning for warning in found)


def test_a_mean_loss_over_masked_tokens_is_warned_of(make_spec: MakeSpec) -> None:
    cluster = Cluster((Node("a", ("cpu",)),))
    for changes, number in (({}, 1), ({"calculate_per_token_loss": True}, 0)):
        spec = make_spec(eod_mask_loss=True, **changes)
        assert len(engine.warnings(spec, build_plan(engine.request(spec), cluster))) == number


COUNTS = st.integers(-1, 6)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(
                (
                    "num_layers",
                    "hidden_size",
                    "num_attention_heads",
                    "num_query_groups",
                    "micro_batch_size",
                    "global_batch_size",
                    "tensor_model_parallel_size",
                    "pipeline_model_parallel_size",
                    "context_parallel_size",
                    "expert_model_parallel_size",
                    "num_experts",
                    "decoder_first_pipeline_num_layers",
                    "num_layers_per_virtual_pipeline_stage",
                    "num_virtual_stages_per_pipeline_rank",
                    "lr_warmup_iters",
                    "train_samples",
                ),
                COUNTS,
            ),
            "hetero_process_meshes": st.lists(COUNTS, max_size=10),
            "hetero_pipeline_layer_split": st.lists(COUNTS, max_size=4),
            "hetero_sequence_parallel": st.lists(st.booleans(), max_size=2),
            "rampup_batch_size": st.lists(COUNTS, max_size=3),
            "recompute_num_layers_per_stage_micro_batch": st.lists(st.lists(COUNTS, max_size=5), max_size=2),
            "pipeline_model_parallel_layout": st.text("Et|L()*2m", max_size=8),
            "enable_hetero": st.booleans(),
            "group_query_attention": st.booleans(),
            "sequence_parallel": st.booleans(),
            "recompute_granularity": st.sampled_from(["full", "selective"]),
        },
    )
)
def test_no_numbers_make_a_traceback(changes: dict[str, Any]) -> None:
    spec = make(**changes)
    faults = list(engine.check(spec))
    with suppress(ConfigError):
        plan = build_plan(engine.request(spec), Cluster((Node("a", ("cpu",) * 8),)))
        assert check_plan(plan) == []
        faults += engine.check_plan(spec, plan)
    assert all(fault.what for fault in faults)


def test_what_is_not_given_has_the_place_of_the_block_that_it_belongs_into(make_spec: MakeSpec) -> None:
    spec = make_spec(without=("num_layers", "mock_data"), train_iters=10)
    where = {**spec.where, "train.model": "t.yaml:3 train.model", "train.data": "t.yaml:9 train.data"}
    spec = replace(spec, where=where)
    faults = [*engine.check(spec), *engine.check_files(replace(spec, arguments={**spec.arguments, "num_layers": 4}))]
    assert {
        ("'num_layers' is missing", "t.yaml:3 train.model"),
        ("there is no training data", "t.yaml:9 train.data"),
    } <= {(fault.what, fault.where) for fault in faults}


def test_a_folder_to_begin_from_that_is_not_there_is_a_fault_unless_the_run_makes_it(
    make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    [fault] = engine.check_files(make_spec(load="nowhere"))
    assert "there is nothing at nowhere" in fault.what
    assert fault.where.endswith("train.model.load")
    assert engine.check_files(make_spec(load="x/checkpoints")) == []
    assert engine.check_files(make_spec(load="mine", save="mine")) == []
    (tmp_path / "x/checkpoints").mkdir(parents=True)
    assert engine.check_files(make_spec(load="nowhere")) == []
