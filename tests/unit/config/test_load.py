from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flagvega.config.command import parse
from flagvega.config.load import choose_action, find_exp_dir, read_experiment
from flagvega.config.overrides import parse_value
from flagvega.errors import ConfigError

EXPERIMENT = """\
defaults: [{train: tiny}, _self_]
experiment:
  exp_name: tiny
"""


def test_two_files_become_one_spec(write, load, tmp_path):
    write()

    spec = load()

    assert (spec.name, spec.exp_dir) == ("tiny", tmp_path / "outputs/tiny")
    assert (spec.task.type, spec.task.backend, spec.runner.type, spec.runner.nnodes) == (
        "train",
        "megatron",
        "local",
        1,
    )
    assert spec.arguments == {
        "tensor_model_parallel_size": 1, "num_layers": 4, "hidden_size": 64, "lr": 1e-3, "mock_data": True,
    }  # fmt: skip
    assert spec.where["num_layers"] == "conf/train/tiny.yaml:4 train.model.num_layers"
    assert spec.where["experiment.exp_name"] == "conf/exp.yaml:5 experiment.exp_name"


def test_the_experiment_wins_over_the_task_and_the_command_line_over_both(write, load):
    write(EXPERIMENT + "train: {model: {num_layers: 6, lr: 1e-2}}\n")

    spec = load("train.model.lr=1e-4", "train.data.seed=7", "+bridge.chunk_bytes=64")

    assert (spec.arguments["num_layers"], spec.arguments["lr"], spec.arguments["seed"]) == (6, 1e-4, 7)
    assert spec.where["num_layers"] == "conf/exp.yaml:4 train.model.num_layers"
    assert spec.where["lr"] == "command line: train.model.lr"
    assert spec.blocks == {"bridge": {"chunk_bytes": 64}}


def test_what_the_command_line_replaces_is_not_told_at_the_lines_of_the_yaml(write, load):
    write(EXPERIMENT + "cluster: {nodes: [{chip: cpu, devices: 1}]}\nbridge: {chunk_bytes: 8, wire_dtype: bf16}\n")

    where = load("cluster.nodes=[{chip: cpu, devices: 2}]", "bridge={chunk_bytes: 64}").where

    assert where["cluster.nodes"] == "command line: cluster.nodes"
    assert not any(key.startswith("cluster.nodes[") for key in where)
    assert where["bridge.chunk_bytes"] == "command line: bridge.chunk_bytes"
    assert where["bridge.wire_dtype"] == "conf/exp.yaml:5 bridge.wire_dtype"


def test_another_task_file_is_picked_on_the_command_line(write, load):
    write()
    Path("conf/train/other.yaml").write_text("model: {num_layers: 9}\n")

    assert load("train=other").arguments == {"num_layers": 9}


def test_a_key_is_removed(write, load):
    write()

    assert "lr" not in load("~train.model.lr").arguments


def test_hyphens_and_nesting_mean_nothing_and_null_means_not_given(write, load):
    write(task="model:\n  a: {b: {num-layers: 3}}\n  seed: null\n  optimizer: {lr: '1e-5'}\n")

    assert load().arguments == {"num_layers": 3, "lr": 1e-5}


def test_values_get_the_types_of_their_keys(write, load):
    write(task="model:\n  num_layers: '3'\n  lr: 1\n  train_samples: 1e6\n  bf16: 'true'\n"
               "  rampup_batch_size: [2, 2, 100]\ndata:\n  split: 1\n  data_path: corpus\n")  # fmt: skip

    arguments = load().arguments

    assert arguments == {
        "num_layers": 3, "lr": 1.0, "train_samples": 1_000_000, "bf16": True, "rampup_batch_size": [2, 2, 100],
        "split": "1", "data_path": ["corpus"],
    }  # fmt: skip
    assert isinstance(arguments["train_samples"], int)


def test_switching_off_what_is_not_supported_is_fine(write, load):
    write(task="model: {multi_latent_attention: false}\n")

    assert load().arguments == {"multi_latent_attention": False}


def test_references_resolve_and_the_dump_keeps_them(write, load, monkeypatch):
    monkeypatch.setenv("NODES", "2")
    monkeypatch.setenv("MY_HOST", "host-a")
    write(EXPERIMENT + "  exp_dir: out/${experiment.exp_name}\n  runner:\n    nnodes: ${env:NODES}\n"
          "    master_addr: ${oc.env:MY_HOST}\n    hostfile: ${env:NO_HOSTFILE,hosts}\n")  # fmt: skip

    spec = load()

    assert spec.exp_dir == Path.cwd() / "out/tiny"
    assert (spec.runner.nnodes, spec.runner.master_addr, spec.runner.hostfile) == (2, "host-a", "hosts")
    assert spec.composed["experiment"]["runner"]["master_addr"] == "${oc.env:MY_HOST}"


def test_a_key_that_another_refers_to_is_a_variable(write, load, faults):
    write(EXPERIMENT + "  seed: 7\nsizes: {hidden: 64}\n",
          "model: {seed: '${experiment.seed}', hidden_size: '${sizes.hidden}'}\n")  # fmt: skip
    assert load().arguments == {"seed": 7, "hidden_size": 64}

    write(EXPERIMENT + "  seed: 7\nsizes: {hidden: 64}\n", "model: {seed: 7}\n")
    assert {fault.where.split()[1] for fault in faults()} == {"experiment.seed", "sizes"}


def test_the_dump_holds_no_secret(write, load, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "secret-from-env")
    write(EXPERIMENT + "  envs:\n    WANDB_API_KEY: secret-in-file\n    HF_TOKEN: ${oc.env:MY_TOKEN}\n"
          "    http_proxy: http://me:secret-in-url@proxy:80\n    NUM_TOKENS: 5\n")  # fmt: skip

    spec = load()

    assert "secret" not in json.dumps(spec.composed)
    assert spec.composed["experiment"]["envs"] == {
        "WANDB_API_KEY": "<redacted>", "HF_TOKEN": "${oc.env:MY_TOKEN}",
        "http_proxy": "http://proxy:80", "NUM_TOKENS": 5,
    }  # fmt: skip
    assert spec.envs["WANDB_API_KEY"] == "secret-in-file"
    assert any("WANDB_API_KEY" in warning for warning in spec.warnings)


def test_a_placeholder_may_be_filled_in_on_the_command_line(write, load):
    write(task="data: {data_path: '${data_path:??}', vocab_file: '${vocab??}', merge_file: xxxx}\n")

    words = ("train.data.data_path=a", "train.data.vocab_file=b", "train.data.merge_file=c")

    assert load(*words).arguments == {"data_path": ["a"], "vocab_file": "b", "merge_file": "c"}


def test_a_callback_of_hydra_is_refused_and_never_runs(write, faults, tmp_path):
    marker = tmp_path / "marker"
    callback = f"hydra:\n  callbacks:\n    evil:\n      _target_: pathlib.Path.touch\n      self: {marker}\n"
    write(EXPERIMENT + callback)

    found = faults()

    assert {fault.where for fault in found} == {
        "conf/exp.yaml:5 hydra.callbacks", "conf/exp.yaml:7 hydra.callbacks.evil._target_",
    }  # fmt: skip
    assert not marker.exists()


@pytest.mark.parametrize(
    ("experiment", "task", "words"),
    [
        ("hydra: {launcher: {x: 1}}\n", None, ()),
        ("", "# @package _global_\nhydra: {job_logging: {x: 1}}\n", ()),
        ("", "system: {a: {_target_: pathlib.Path.touch}}\n", ()),
        ("", None, ("hydra.callbacks={a: {_target_: x}}",)),
        ("", None, ("train.model.x={_target_: pathlib.Path.touch}",)),
    ],
)
def test_settings_of_hydra_are_refused_wherever_they_stand(experiment, task, words, write, faults):
    write(EXPERIMENT + experiment, task or "model: {num_layers: 1}\n")

    assert any("refused" in fault.what for fault in faults(*words))


def test_overriding_a_group_of_hydra_is_refused(write, faults):
    write(EXPERIMENT.replace("_self_", "override hydra/job_logging: colorlog"))

    assert [fault.where for fault in faults()] == ["conf/exp.yaml:1 defaults: override hydra/job_logging"]


def test_the_run_dir_of_hydra_is_read_and_means_nothing(write, load):
    write(EXPERIMENT + "hydra: {run: {dir: '${experiment.exp_dir}/hydra/${oc.env:NOT_SET}'}}\n")

    assert load("hydra.run.dir=x").warnings == ()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8", 8), ("1e-5", 1e-5), ("true", True), ("null", None), ("", ""), ("[1, 2]", [1, 2]), ("{a: 1}", {"a": 1}),
        ("0,1", "0,1"), ("a: b # c", "a: b # c"), ("$(touch x); `y`", "$(touch x); `y`"), ("a\nb", "a\nb"),
        ("'8'", "8"), ("[1", "[1"), ("2024-01-01", "2024-01-01"), ("${env:X}", "${env:X}"), ("ü", "ü"),
    ],
)  # fmt: skip
def test_a_value_typed_is_yaml_where_it_looks_like_it_else_the_text_as_it_stands(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_hostile_text_arrives_unharmed(write, load):
    write()
    text = "a b'\"; $(touch x) `y` & \\ ü\n|"

    spec = load(f"experiment.exp_name={text}", f"experiment.envs.A={text}")

    assert (spec.name, spec.envs["A"]) == (text, text)
    assert not Path("x").exists()


def test_the_folder_is_looked_for_in_the_working_directory_then_beside_flagvega(write, monkeypatch):
    write()
    found = read_experiment(parse(["--config-path", "conf"], {}, {}))
    beside = read_experiment(parse(["--config-path", "examples/gpt/conf", "--config-name", "one.yaml"], {}, {}))

    assert found.values["experiment"]["exp_name"] == "tiny"
    assert beside.values["experiment"]["exp_name"] == "gpt-one"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "--config-path is missing"),
        (["--config-path", "cnf"], "no folder 'cnf'"),
        (["--config-path", "conf/exp.yaml"], "--config-path .*conf --config-name exp"),
        (["--config-path", "conf", "--config-name", "exq"], "did you mean 'exp'"),
        (["--config-path", "conf", "train=tinny"], "did you mean 'tiny'"),
        (["--config-path", "conf", "a..b=1"], "not a key"),
        (["--config-path", "conf", "a=${"], "not a value"),
    ],
)
def test_what_cannot_be_found_is_told(words, says, write):
    write()

    with pytest.raises(ConfigError, match=says):
        read_experiment(parse(words, {}, {}))


def test_a_draft_knows_its_folder_whatever_else_is_wrong_with_it(write):
    write(task="model: {num_layer: xxxx}\nnonsense: 1\n")

    assert find_exp_dir(read_experiment(parse(["-cp", "conf"], {}, {}))) == Path.cwd() / "outputs/tiny"


def test_a_draft_without_its_folder_says_so(write):
    write(EXPERIMENT + "  exp_dir: ${oc.env:NOT_SET_ANYWHERE}\n")

    with pytest.raises(ConfigError, match="NOT_SET_ANYWHERE"):
        find_exp_dir(read_experiment(parse(["-cp", "conf"], {}, {})))


@pytest.mark.parametrize(("words", "action"), [([], "stop"), (["action=run"], "run")])
def test_the_command_line_chooses_the_action_before_the_yaml(words, action, write):
    write(EXPERIMENT + "action: stop\n")
    actions = {"run": "start", "stop": "end"}
    command = parse(["-cp", "conf", *words], actions, {})

    assert choose_action(command, read_experiment(command), actions) == action


def test_an_unknown_action_of_the_yaml_is_told_with_its_line(write):
    write(EXPERIMENT + "action: tune\n")
    command = parse(["-cp", "conf"], {"run": "start"}, {})

    with pytest.raises(ConfigError, match=r"exp\.yaml:4 action: unknown action 'tune'"):
        choose_action(command, read_experiment(command), {"run": "start"})


def test_a_plan_is_a_path_or_a_mapping_or_auto(write, load):
    write()

    assert load("plan=a/plan.json").blocks == load("plan.file=a/plan.json").blocks
    assert load("plan=a/plan.json").blocks["plan"]["file"] == "a/plan.json"
    assert load("plan=auto").blocks["plan"]["file"] == "auto"


def test_nodes_of_a_cluster_are_read_and_checked(write, load, faults):
    write(EXPERIMENT + "cluster:\n  nodes:\n  - {chip: emu-l, devices: 2}\n  - {chip: emu-s, host: b}\n")
    nodes = load().blocks["cluster"]["nodes"]
    assert [(node["host"], node["chip"], node["devices"]) for node in nodes] == [
        ("localhost", "emu-l", 2),
        ("b", "emu-s", 1),
    ]

    write(EXPERIMENT + "cluster:\n  nodes:\n  - {chip: emu-l, devices: 0}\n  - {chp: emu-s}\n")
    assert [fault.where for fault in faults()] == [
        "conf/exp.yaml:6 cluster.nodes[0].devices",
        "conf/exp.yaml:7 cluster.nodes[1].chp",
        "conf/exp.yaml:7 cluster.nodes[1].chip",
    ]


def test_loading_imports_no_engine_and_no_torch(repository):
    code = (
        "import sys; from flagvega.config.command import parse; from flagvega.config.load import load_spec\n"
        "from backends.megatron.arguments import keys\n"
        "load_spec(parse(['-cp', 'examples/gpt/conf', '-cn', 'one'], {}, {}), lambda name: keys())\n"
        "print([name for name in ('torch', 'megatron', 'vllm', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"
