"""What the control side says of checkpoints before any rank starts: real folders with manifests, no tensors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from backends.megatron.engine import engine
from backends.megatron.resume import STATE
from backends.megatron.shape import model_facts
from flagvega.cluster.nodes import Cluster, Node
from flagvega.config.spec import Spec
from flagvega.errors import VerdictError
from flagvega.layout.build import build_plan
from flagvega.records import write_json, write_manifest

from .conftest import BASE, make

LAPTOP = Cluster((Node("a", ("cpu",)),))
STEPS = BASE["train_iters"]


def finished(root: Path, **arguments: object) -> int | None:
    spec = replace(make(**arguments), exp_dir=root)
    return engine.finished_step(spec, build_plan(engine.request(spec), LAPTOP))


def save(folder: Path, step: int, **arguments: object) -> Path:
    """A checkpoint as one of the run's model would be."""
    spec: Spec = make(**arguments)
    plan = build_plan(engine.request(spec), LAPTOP)
    settings = {**engine.job(spec, plan, LAPTOP).files["job/rank.json"]["arguments"]}
    path = folder / f"iter_{step:07d}"
    path.mkdir(parents=True)
    model = model_facts(settings, plan.batch.padded_vocab_size, plan.tied_embeddings)
    write_json(path / STATE, {"step": step, "consumed_samples": 8 * step, "model": model})
    (path / "weights").write_bytes(bytes(64))
    write_manifest(path)
    return path


def test_a_run_is_finished_where_its_newest_checkpoint_is_of_the_last_step(tmp_path: Path) -> None:
    assert finished(tmp_path) is None
    save(tmp_path / "checkpoints", STEPS - 1)
    assert finished(tmp_path) is None
    save(tmp_path / "checkpoints", STEPS)
    assert finished(tmp_path) == STEPS
    assert finished(tmp_path, train_iters=STEPS + 1) is None
    assert finished(tmp_path, train_iters=None, train_samples=8 * STEPS) == STEPS
    assert finished(tmp_path, train_iters=None, train_samples=8 * STEPS + 1) is None


def test_checkpoints_are_looked_for_where_the_yaml_says(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere", STEPS)
    assert finished(tmp_path) is None
    assert finished(tmp_path, save=str(tmp_path / "elsewhere")) == STEPS
    assert finished(tmp_path, load=str(tmp_path / "elsewhere")) == STEPS
    assert finished(tmp_path, load=str(tmp_path / "elsewhere"), finetune=True) is None


def test_a_damaged_checkpoint_finishes_nothing(tmp_path: Path) -> None:
    save(tmp_path / "checkpoints", STEPS - 1)
    (save(tmp_path / "checkpoints", STEPS) / "weights").write_bytes(bytes(63) + b"x")
    assert finished(tmp_path) is None
    assert finished(tmp_path, train_iters=STEPS - 1) == STEPS - 1


def test_what_no_run_can_go_on_from_is_refused_before_any_rank_starts(tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoints", 2)
    with pytest.raises(VerdictError, match="model has num_layers 4, this run's 2"):
        finished(tmp_path, num_layers=2)
    (path / "weights").write_bytes(b"")
    with pytest.raises(VerdictError, match="no checkpoint is good .*0000002: weights has 0 bytes"):
        finished(tmp_path)
