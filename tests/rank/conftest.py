"""One fork server and one set of one-process runs for all rank tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rank.client import Server
from tests.rank.gate import Gate


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Started at its first job."""
    with Server() as started:
        yield started


@pytest.fixture(scope="session")
def gate(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Gate:
    """Keeps the curves of one-process runs."""
    return Gate(server, Path(tmp_path_factory.mktemp("gate")))
