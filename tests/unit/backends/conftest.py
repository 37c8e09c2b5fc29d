"""A small model that is right in every respect, to be changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flagvega.config.spec import Commands, Runner, Spec, Task

BASE = {
    "num_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "seq_length": 32,
    "max_position_embeddings": 32,
    "micro_batch_size": 2,
    "global_batch_size": 8,
    "lr": 1e-3,
    "train_iters": 10,
    "mock_data": True,
    "vocab_size": 509,
}

MakeSpec = Callable[..., Spec]


def make(
    *,
    without: tuple[str, ...] = (),
    blocks: dict[str, Any] | None = None,
    envs: dict[str, str] | None = None,
    **arguments: Any,
) -> Spec:
    """A spec of the base model with arguments changed or left out; each has a line of its own."""
    given = {name: value for name, value in {**BASE, **arguments}.items() if name not in without}
    where = {name: f"t.yaml:{i} train.model.{name}" for i, name in enumerate(given, start=1)}
    return Spec("x", Path("x"), Task(), Runner(), envs or {}, Commands(), given, blocks or {}, where)


@pytest.fixture
def make_spec() -> MakeSpec:
    """Makes specs."""
    return make
