"""What becomes of FlagScale's task keys."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from backends.megatron.arguments import keys


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """tools/make_flagscale.py."""
    path = Path(__file__).resolve().parents[3] / "tools/make_flagscale.py"
    spec = importlib.util.spec_from_file_location("make_flagscale", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_task_key_of_flagscale_is_unclassed(tool: ModuleType, repository: Path) -> None:
    with (repository / "tests/data/flagscale_keys.csv").open(newline="") as file:
        wanted = {row["key"] for row in csv.DictReader(file) if row["key"].startswith("train.")}
    with tool.TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["key"] for row in rows} == wanted
    assert len(wanted) > 100
    assert all(row["class"] in ("honoured", "mapped", "ignored", "refused") for row in rows)
    assert all(row["note"] for row in rows if row["class"] != "honoured")


def test_the_classes_agree_with_what_the_engine_does(tool: ModuleType) -> None:
    for path in tool.flagscale_paths():
        kind, _ = tool.classify(path)
        target = keys()[path.rpartition(".")[2].replace("-", "_")].target
        if kind in ("honoured", "mapped"):
            assert target not in ("ignored", "unsupported"), path


def test_table_and_page_are_what_their_generator_writes(tool: ModuleType) -> None:
    assert tool.make_table() == tool.TABLE.read_text()
    assert tool.make_page() == tool.PAGE.read_text()


@pytest.mark.parametrize(
    "name",
    ["use_dualpipev", "moe_fb_overlap", "peft_type", "lora_dim", "lora_target_modules", "extra_vocab_size",
     "vision_root", "moe_router_enable_expert_bias", "mtp_num_layers", "multi_latent_attention", "no_load_optim"],
)  # fmt: skip
def test_what_newer_examples_of_flagscale_ask_for_beyond_this_engine_is_answered(name: str) -> None:
    assert keys()[name].target == "unsupported"
    assert keys()[name].note not in ("", "not supported")


@pytest.mark.parametrize("name", ["use_partial_reduce_for_shared_embedding", "distributed_backend", "wandb_log_model"])
def test_what_newer_examples_say_of_machinery_that_is_not_here_changes_nothing(name: str) -> None:
    assert keys()[name].target == "ignored"
    assert not keys()[name].choices
