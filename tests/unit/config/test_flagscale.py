from __future__ import annotations

import csv

import pytest

from flagvega.config.flagscale import find_row, rows

HEAD = "defaults: [{train: tiny}, _self_]\nexperiment:\n  exp_name: tiny\n"


def test_every_experiment_key_of_flagscale_is_classed(repository):
    with (repository / "tests/data/flagscale_keys.csv").open(newline="") as file:
        keys = [row["key"] for row in csv.DictReader(file) if not row["key"].startswith("train.")]

    assert len(keys) > 50
    assert [key for key in keys if find_row(key) is None] == []


def test_every_row_has_a_known_class_and_says_why_where_it_changes_something():
    assert {row.treatment for row in rows()} == {"honoured", "mapped", "ignored", "refused"}
    assert [row.key for row in rows() if row.treatment != "honoured" and not row.note] == []
    assert len({row.key for row in rows()}) == len(rows())


@pytest.mark.parametrize("row", [row for row in rows() if row.treatment == "ignored"], ids=lambda row: row.key)
def test_an_ignored_key_changes_nothing_and_warns(row, write, load):
    write(HEAD)

    warnings = load(f"{row.key}={{a: 1}}").warnings

    assert warnings == (f"command line: {row.key}: ignored: {row.note}",)


@pytest.mark.parametrize("row", [row for row in rows() if row.treatment == "refused"], ids=lambda row: row.key)
def test_a_refused_key_tells_what_to_write_instead(row, write, faults):
    write(HEAD)

    [fault] = faults(f"{row.key}={{a: 1}}")

    assert fault.where == f"command line: {row.key}"
    assert "refused" in fault.what


@pytest.mark.parametrize(
    ("entrypoint", "says"),
    [
        ("./flagscale/train/train_aquila.py", ""),
        ("flagscale/train/train_gpt.py", ""),
        ("flagscale/train/megatron/train_gpt.py", ""),
        ("./flagscale/train/train_llava_onevision.py", "on images"),
        ("./flagscale/train/train_rwkv.py", "GPT family"),
        ("mine/train.py", "delete the key"),
    ],
)
def test_an_entrypoint_maps_where_the_engine_does_the_same(entrypoint, says, write, load, faults):
    write(HEAD + f"  task: {{type: train, backend: megatron, entrypoint: {entrypoint}}}\n")

    if says:
        assert says in str(faults()[0])
    else:
        assert load().warnings == ()


def test_a_cloud_experiment_of_flagscale_runs_unchanged(write, load, monkeypatch):
    for name, value in {"MASTER_ADDR": "10.0.0.1", "WORLD_SIZE": "4", "RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    write(
        HEAD + "  exp_dir: ./outputs\n"
        "  task:\n    type: train\n    backend: megatron\n    entrypoint: ./flagscale/train/train_aquila.py\n"
        "  runner:\n    type: cloud\n    backend: torchrun\n    hostfile: null\n    rdzv_backend: static\n"
        "    rdzv_id: demo\n    nnodes: ${env:WORLD_SIZE}\n    node_rank: ${env:RANK}\n    nproc_per_node: 8\n"
        "    master_addr: ${env:MASTER_ADDR}\n    master_port: 12345\n"
        "  envs:\n    CUDA_VISIBLE_DEVICES: 0,1,2,3\n    CUDA_DEVICE_MAX_CONNECTIONS: 1\n"
        "  cmds: {before_start: source activate flagscale, after_stop: ''}\n"
        "  auto_tuner: {space: {micro_batch_size: auto}, control: {train_iters: 5}}\n"
        "action: run\nhydra:\n  run:\n    dir: ${experiment.exp_dir}/hydra/${oc.env:RANK}\n"
    )

    spec = load()

    runner = spec.runner
    assert (runner.type, runner.nnodes, runner.node_rank, runner.master_addr) == ("cloud", 4, 3, "10.0.0.1")
    assert runner.options == {"rdzv_backend": "static", "rdzv_id": "demo"}
    assert spec.envs == {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    assert spec.blocks["auto_tuner"]["space"] == {"micro_batch_size": "auto"}
    assert [warning.split()[1].rstrip(":") for warning in spec.warnings] == [
        "experiment.runner.rdzv_backend", "experiment.runner.rdzv_id",
    ]  # fmt: skip
