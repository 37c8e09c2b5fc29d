from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.plan import asked


@pytest.fixture(autouse=True)
def little_time_for_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    """The problems here are small: what there is to tell of them is found at once."""
    monkeypatch.setattr("flagvega.actions.plan.MAX_REASONS_S", 1.0)


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """An empty folder with the experiment, in the module's own words where it has them."""
    monkeypatch.chdir(tmp_path)
    texts = (getattr(request.module, name, getattr(asked, name)) for name in ("EXPERIMENT", "TASK"))
    asked.write(tmp_path, *texts)
