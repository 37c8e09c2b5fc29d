"""What every test shares: where the repository is, hypothesis' profile, skipping without a device."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]

settings.register_profile("default", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")


def _has_device() -> bool:
    if find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of tests/device need a real accelerator."""
    on_device = [item for item in items if item.path.is_relative_to(ROOT / "tests" / "device")]
    if not on_device:
        return
    skip = None if _has_device() else pytest.mark.skip(reason="no accelerator here")
    for item in on_device:
        item.add_marker(pytest.mark.device)
        if skip:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return ROOT
