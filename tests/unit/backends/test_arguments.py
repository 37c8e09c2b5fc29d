"""The table of engine arguments."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

import pytest

from backends.megatron import arguments, fields
from backends.megatron.arguments import complete, config_fields, defaults, keys, negations, supported
from flagvega.config.keys import Key

SHAPE: dict[str, Any] = {"num_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "seq_length": 32}


def load_tool(repository: Path, name: str) -> ModuleType:
    """A module of tools/."""
    spec = importlib.util.spec_from_file_location(name, repository / "tools" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_snapshot_of_fields_is_that_of_the_installed_engine() -> None:
    folder = fields.installed()
    if folder is None:
        pytest.skip("megatron-core is not installed")
    assert json.loads(fields.SNAPSHOT.read_text()) == fields.read_fields(folder)


def test_the_table_is_what_its_generator_writes(repository: Path) -> None:
    tool = load_tool(repository, "make_arguments")
    snapshot = json.loads(fields.SNAPSHOT.read_text())
    assert tool.make_table(snapshot) == arguments.TABLE.read_text()


def test_reading_the_table_imports_neither_torch_nor_the_engine(repository: Path) -> None:
    import subprocess

    code = "import sys; from backends.megatron.engine import engine; engine.keys(); "
    code += "print([name for name in ('torch', 'numpy', 'megatron.core') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_key_has_a_type_and_a_target_that_we_know() -> None:
    kinds = get_args(get_type_hints(Key)["type"])
    for name, key in keys().items():
        assert key.name == name
        assert key.type in kinds, name
        known = key.target in ("loop", "plan", "ignored", "unsupported")
        assert known or all("." in word for word in key.target.replace("not ", "").split()), name
        assert key.note or key.target not in ("ignored", "unsupported"), name


def test_every_default_has_the_type_of_its_key() -> None:
    types = {"bool": bool, "int": int, "float": (int, float), "str": str}
    for name, key in supported().items():
        if key.default is None:
            continue
        if key.type.endswith("_list"):
            assert isinstance(key.default, list), name
        elif key.type != "any":
            assert isinstance(key.default, types[key.type]), name
        assert not key.choices or key.default in key.choices, name


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("hidden_dropout", 0.1),
        ("weight_decay", 0.01),
        ("seed", 1234),
        ("make_vocab_size_divisible_by", 128),
        ("eval_iters", 100),
        ("eval_interval", 1000),
        ("lr_decay_style", "linear"),
        ("calculate_per_token_loss", False),
        ("norm_epsilon", 1e-5),
        ("clip_grad", 1.0),
        ("adam_beta2", 0.999),
        ("add_bias_linear", True),
    ],
)
def test_an_omitted_key_has_the_default_of_megatron_lm(name: str, default: Any) -> None:
    assert defaults()[name] == default


def test_negations_are_pairs_with_opposite_defaults() -> None:
    assert negations()["disable_bias_linear"] == "add_bias_linear"
    assert negations()["no_check_for_nan_in_loss_and_grad"] == "check_for_nan_in_loss_and_grad"
    assert all(defaults()[negative] != defaults()[positive] for negative, positive in negations().items())


@pytest.mark.parametrize(("negative", "positive"), negations().items())
def test_a_negation_and_its_key_agree_whichever_is_given(negative: str, positive: str) -> None:
    for value in (True, False):
        assert complete({negative: value})[positive] is not value
        assert complete({positive: value})[negative] is not value


def test_completing_twice_changes_nothing() -> None:
    given = {**SHAPE, "bf16": True, "disable_bias_linear": True, "use_te": True, "swiglu": True, "multiple_of": 256}
    once = complete(given)
    assert complete(once) == once
    assert set(once) == set(supported())


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({}, "ffn_hidden_size", 256),
        ({"swiglu": True}, "ffn_hidden_size", 128),
        ({"swiglu": True, "hidden_size": 4096}, "ffn_hidden_size", 10880),
        ({"swiglu": True, "hidden_size": 4096, "multiple_of": 256}, "ffn_hidden_size", 11008),
        ({"hidden_size": 4096, "multiple_of": 256}, "ffn_hidden_size", 16384),
        (
            {"swiglu": True, "hidden_size": 8192, "multiple_of": 4096, "hidden_dim_multiplier": 1.3},
            "ffn_hidden_size",
            28672,
        ),
        ({"rotary_interleaved": True}, "apply_rope_fusion", False),
        ({"ffn_hidden_size": 100, "swiglu": True}, "ffn_hidden_size", 100),
        ({}, "kv_channels", 16),
        ({}, "num_query_groups", 4),
        ({"num_query_groups": 2}, "num_query_groups", 4),
        ({"num_query_groups": 2, "group_query_attention": True}, "num_query_groups", 2),
        ({"use_rotary_position_embeddings": True}, "position_embedding_type", "rope"),
        ({"bf16": True}, "accumulate_allreduce_grads_in_fp32", True),
        ({"bf16": True, "accumulate_allreduce_grads_in_fp32": False}, "accumulate_allreduce_grads_in_fp32", False),
        ({"split": "90,5,5"}, "split", "90,5,5"),
        ({}, "split", "969,30,1"),
    ],
)
def test_what_is_left_out_follows_from_the_rest_as_in_megatron_lm(given: dict[str, Any], name: str, value: Any) -> None:
    assert complete({**SHAPE, **given})[name] == value


def test_arguments_become_fields_under_the_names_of_the_classes() -> None:
    given = {**SHAPE, "norm_epsilon": 1e-6, "disable_bias_linear": True, "swiglu": True, "num_experts": 8, "bf16": True}
    transformer = config_fields(given, "TransformerConfig")
    assert transformer["layernorm_epsilon"] == 1e-6
    assert transformer["add_bias_linear"] is False
    assert transformer["gated_linear_unit"] is True
    assert transformer["activation_func"] == "silu"
    assert transformer["num_moe_experts"] == 8
    assert transformer["params_dtype"] == transformer["pipeline_dtype"] == "bf16"
    assert config_fields(given, "DistributedDataParallelConfig")["grad_reduce_in_fp32"] is True
    assert config_fields({**given, "lr": 0.1}, "OptimizerConfig")["lr"] == 0.1
    assert config_fields(given, "GPTDatasetConfig")["sequence_length"] == 32


def test_every_field_that_is_set_exists() -> None:
    for name, of_class in fields.fields().items():
        extra = {"activation_func", "params_dtype", "pipeline_dtype"}
        assert set(config_fields(SHAPE, name)) - extra <= set(of_class)


def test_degrees_and_recompute_never_come_from_the_arguments() -> None:
    given = {**SHAPE, "tensor_model_parallel_size": 2, "recompute_granularity": "full", "sequence_parallel": True}
    found = config_fields(given, "TransformerConfig")
    assert not {"tensor_model_parallel_size", "recompute_granularity", "sequence_parallel"} & set(found)


def test_a_field_that_the_installed_engine_lacks_makes_its_key_unsupported() -> None:
    lacking = Key("x", "int", target="TransformerConfig.no_such_field")
    assert not arguments._has_fields(lacking)
    assert arguments._lacking(lacking).target == "unsupported"
