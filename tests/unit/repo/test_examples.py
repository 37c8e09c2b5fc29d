from __future__ import annotations

import json
from pathlib import Path

import pytest

from flagvega.cli import main
from tests.checkout import project_files
from tests.conftest import ROOT

EXPERIMENTS = project_files(":(glob)examples/*/conf/*.yaml")
RANKS = {
    "aquila/train_hetero": 16,
    "cluster/planned": 64,
    "cluster/two_vendors": 64,
    "gpt/mixed": 4,
    "gpt/one": 1,
    "llama/demo": 5,
    "llama/inference_demo": 1,
    "llama/serve_demo": 1,
    "llama/serve_disaggregated": 2,
    "llama/serve_mixed": 2,
    "llama/serve_plan": 1,
    "llama/serve_tune": 1,
    "llama/tune": 5,
    "mixtral/tiny": 4,
    "qwen/qwen2_5_0_5b": 8,
    "qwen/qwen2_5_7b": 16,
    "qwen/qwen2_5_72b": 64,
}
SERVING = [path for path in EXPERIMENTS if path.stem.startswith(("serve", "inference"))]


def name(path: Path) -> str:
    """``llama/demo`` of ``examples/llama/conf/demo.yaml``."""
    return f"{path.parts[1]}/{path.stem}"


def test_every_example_is_listed_here() -> None:
    assert {name(path) for path in EXPERIMENTS} == set(RANKS)


def dryrun(path: Path, *overrides: str) -> int:
    """The exit code of an example's dry-run."""
    return main(["--config-path", str(path.parent), "--config-name", path.stem, "action=dryrun", *overrides])


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_an_example_dryruns_where_no_data_have_been_prepared(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    assert dryrun(path, "output=json", "construct=false") == 0
    document = json.loads(capsys.readouterr().out)
    decisions = document["plan"]["decisions"]
    parts = decisions["instances" if path in SERVING else "meshes"]
    assert sum(len(part["devices"]) for part in parts) == RANKS[name(path)]
    assert len(document["commands"]) == len(parts if path in SERVING else document["cluster"])


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in EXPERIMENTS if path not in SERVING], ids=name)
def test_the_engine_s_own_classes_take_an_example(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert dryrun(path, f"experiment.exp_dir={tmp_path}") == 0
