from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from backends.megatron.arguments import keys as engine_keys
from flagvega.config.command import parse
from flagvega.config.keys import Key
from flagvega.config.load import load_spec
from flagvega.config.spec import Spec
from flagvega.errors import ConfigError, Fault

EXPERIMENT = """\
defaults:
  - train: tiny
  - _self_
experiment:
  exp_name: tiny
  task: {type: train, backend: megatron}
"""
TASK = """\
system:
  tensor_model_parallel_size: 1
model:
  num_layers: 4
  hidden_size: 64
  lr: 1e-3
data:
  mock_data: true
"""

Write = Callable[..., None]
Load = Callable[..., Spec]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes ``conf/exp.yaml`` and ``conf/train/tiny.yaml`` into an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def write_files(experiment: str = EXPERIMENT, task: str | None = TASK) -> None:
        (tmp_path / "conf/train").mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf/exp.yaml").write_text(experiment)
        if task is not None:
            (tmp_path / "conf/train/tiny.yaml").write_text(task)

    return write_files


@pytest.fixture
def load() -> Load:
    """Loads the files that ``write`` wrote, changed by the given words of a command line."""

    def load_files(*words: str) -> Spec:
        command = parse(["--config-path", "conf", "--config-name", "exp", *words], {"run": "start"}, {})
        return load_spec(command, known_keys)

    return load_files


@pytest.fixture
def faults(load: Load) -> Callable[..., tuple[Fault, ...]]:
    """The faults of loading."""

    def find(*words: str) -> tuple[Fault, ...]:
        with pytest.raises(ConfigError) as caught:
            load(*words)
        assert caught.value.exit_code == 2
        return caught.value.faults

    return find


def known_keys(backend: str) -> Mapping[str, Key]:
    if backend != "megatron":
        raise ConfigError(Fault(f"unknown engine '{backend}'", fix="known: megatron"))
    return engine_keys()
