"""Dry runs of services."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from flagvega.cli import main

EXPERIMENT: dict[str, Any] = {
    "experiment": {"exp_name": "s", "task": {"type": "serve"}},
    "serve": [{"serve_id": "m", "engine_args": {"model": "model"}}],
}
Dryrun = Callable[..., dict[str, Any]]


@pytest.fixture
def dryrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Dryrun:
    """The JSON that a dry run of services answers, be it a plan or faults."""
    monkeypatch.chdir(tmp_path)

    def ask(services: Any, code: int = 0, words: Sequence[str] = (), **blocks: Any) -> dict[str, Any]:
        text = yaml.safe_dump({**EXPERIMENT, **blocks, "serve": services})
        (tmp_path / "exp.yaml").write_text(text)
        assert main(["--config-path", ".", "--config-name", "exp", "action=dryrun", "output=json", *words]) == code
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        return document

    return ask


def whats(document: dict[str, Any]) -> str:
    return "\n".join(f"{fault['where']}: {fault['what']} | {fault['fix']}" for fault in document["faults"])
