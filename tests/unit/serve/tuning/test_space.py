"""Spaces of services: FlagScale's names and the engine's, what is refused, and the YAML of the best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from backends.vllm.arguments import keys
from flagvega.actions.call import OPTIONS, Call
from flagvega.actions.tune_serving import ask
from flagvega.config.command import parse
from flagvega.config.spec import Commands, Runner, Service, Spec, Task
from flagvega.errors import ConfigError, NoPlanError
from flagvega.records import write_json
from flagvega.serve.tuning.best import best_yaml
from flagvega.serve.tuning.space import read_space, with_settings


def spec_of(space: Any, *services: Service) -> Spec:
    services = services or (Service("my-model", "vllm", {"model": "x"}),)
    blocks = {"auto_tuner": {"space": space}}
    return Spec("t", Path("out"), Task("serve"), Runner(), {}, Commands(), {}, blocks, services=services)


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ({"max_num_seqs": [8, 16]}, {"max_num_seqs": (8, 16)}),
        ({"tensor_model_parallel_size": "auto"}, {"tensor_parallel_size": (1, 2, 4)}),
        ({"vllm": {"block_size": [16, 32]}, "sglang": {"page_size": [1]}}, {"block_size": (16, 32)}),
        ({"instance": [1, 2]}, {"num_replicas": (1, 2)}),
        ({"max-num-seqs": {"from": 8, "to": 32, "factor": 2}}, {"max_num_seqs": (8, 16, 32)}),
        ({"my-model": {"dtype": ["float32", "bfloat16"]}}, {"my-model.dtype": ("float32", "bfloat16")}),
        ({"env.OMP_NUM_THREADS": [1, 2]}, {"env.OMP_NUM_THREADS": ("1", "2")}),
        ({"enable_chunked_prefill": "auto"}, {"enable_chunked_prefill": (False, True)}),
    ],
)
def test_dimensions_are_read_as_users_know_them(space: Any, expected: dict[str, Any]) -> None:
    assert dict(read_space(spec_of(space), keys(), 4).dimensions) == expected


def test_without_a_space_the_schedulers_limits_are_tuned() -> None:
    assert [name for name, _ in read_space(spec_of({}), keys(), 1).dimensions] == [
        "max_num_seqs", "max_num_batched_tokens",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"max_num_seq": [8]}, "did you mean 'max_num_seqs'?"),
        ({"max_num_seqs": [0]}, "a whole number above 0"),
        ({"max_num_seqs": ["many"]}, "cannot be one of"),
        ({"dtype": ["fp99"]}, "cannot be 'fp99'"),
        ({"model": "auto"}, "'auto' has no meaning"),
        ({"worker_cls": ["x"]}, "is not taken"),
        ({"max_num_seqs": []}, "an empty list"),
    ],
)
def test_what_cannot_be_a_dimension_is_told(space: Any, words: str) -> None:
    with pytest.raises(ConfigError) as told:
        read_space(spec_of(space), keys(), 1)
    assert words in str(told.value)


def test_replicas_fill_the_devices_where_they_are_auto() -> None:
    spec = spec_of({"instance": "auto", "tensor_parallel_size": [1, 2]})
    space = read_space(spec, keys(), 4)
    assert space.fills
    found = [with_settings(spec, settings, 4).services[0] for settings in space.combinations()]
    assert [(each.tp, each.num_replicas) for each in found] == [(1, 4), (2, 2)]


def test_a_setting_is_of_all_services_or_of_the_one_it_names() -> None:
    spec = spec_of({}, Service("a-b", "vllm", {"model": "x"}), Service("c", "vllm", {"model": "y"}))
    settings = (("max_num_seqs", 8), ("a-b.dtype", "float32"), ("env.X", "1"))
    chosen = with_settings(spec, settings)
    assert [each.arguments.get("max_num_seqs") for each in chosen.services] == [8, 8]
    assert [each.arguments.get("dtype") for each in chosen.services] == ["float32", None]
    assert chosen.envs["X"] == "1"


# ---- from a YAML ----


def call_of(folder: Path, space: Any, **arguments: Any) -> Call:
    (folder / "model").mkdir(exist_ok=True)
    write_json(folder / "model" / "config.json", {"hidden_size": 64, "num_attention_heads": 2})
    given = {"model": str(folder / "model"), "port": 8000, **arguments}
    config = {
        "experiment": {"exp_name": "t", "exp_dir": str(folder / "out"), "task": {"type": "serve"},
                       "auto_tuner": {"space": space}},
        "serve": [{"serve_id": "m", "engine_args": given, "resources": {"num_gpus": 1}}],
        "traffic": {"rate_per_s": 2},
        "cluster": {"nodes": [{"chip": "emu-l", "devices": 4}]},
    }  # fmt: skip
    (folder / "t.yaml").write_text(yaml.safe_dump(config))
    return Call(parse(["--config-path", str(folder), "--config-name", "t"], {}, OPTIONS), Console(quiet=True))


def test_what_the_engine_or_the_cluster_refuses_is_no_candidate(tmp_path: Path) -> None:
    space = {"max_num_seqs": [64, 256], "max_num_batched_tokens": [128, 512], "tensor_parallel_size": [1, 8]}
    question = ask(call_of(tmp_path, space))
    assert question.num_combinations == 8
    assert [dict(each.settings) for each in question.candidates] == [
        {"max_num_seqs": 64, "max_num_batched_tokens": 128, "tensor_parallel_size": 1},
        {"max_num_seqs": 64, "max_num_batched_tokens": 512, "tensor_parallel_size": 1},
        {"max_num_seqs": 256, "max_num_batched_tokens": 512, "tensor_parallel_size": 1},
    ]
    assert sum(count for count, _ in question.refused.values()) == 5
    assert any("'max_num_batched_tokens' is 128" in what for what in question.refused)


def test_a_space_of_which_nothing_can_be_served_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(NoPlanError) as told:
        ask(call_of(tmp_path, {"tensor_parallel_size": [8]}))
    assert "nothing of the space can be served" in str(told.value)


def test_the_yaml_of_the_best_is_the_experiment_with_its_choices(tmp_path: Path) -> None:
    call = call_of(tmp_path, {"max_num_seqs": [8], "tensor_parallel_size": [2], "env.A": ["b"]}, max_num_seqs=4)
    (chosen,) = ask(call).candidates
    text = best_yaml(call.spec, chosen.part, tmp_path)
    (tmp_path / "best.yaml").write_text(text)
    again = Call(parse(["--config-path", str(tmp_path), "--config-name", "best"], {}, OPTIONS), Console(quiet=True))
    assert again.spec.services == chosen.part.services
    assert again.spec.envs["A"] == "b"
    assert "auto_tuner" not in again.spec.blocks
    assert yaml.safe_load(text)["action"] == "run"
