from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def little_time_for_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    """The problems here are small: what there is to tell of them is found at once."""
    monkeypatch.setattr("flagvega.actions.plan.MAX_REASONS_S", 1.0)
