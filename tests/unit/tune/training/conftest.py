from __future__ import annotations

from collections.abc import Callable

import pytest

from flagvega.config.command import parse
from flagvega.config.load import load_spec
from flagvega.config.spec import Spec
from flagvega.engine import engines


@pytest.fixture(scope="session")
def tuned(repository) -> Callable[..., Spec]:
    """The tuning example with changes."""

    def load(*words: str) -> Spec:
        where = ["--config-path", str(repository / "examples/llama/conf"), "--config-name", "tune"]
        return load_spec(parse([*where, *words], {}, {}), lambda name: engines.get(name).keys())

    return load
