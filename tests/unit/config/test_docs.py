from __future__ import annotations

import runpy
from dataclasses import is_dataclass

import pytest

from flagvega.config.blocks import BLOCKS, Experiment
from flagvega.config.fields import entries


def test_the_pages_about_configuration_are_what_the_code_says(repository):
    pages = runpy.run_path(str(repository / "tools/make_configuration_docs.py"))["render"]()

    stale = [path.name for path, text in pages.items() if path.read_text(encoding="utf-8") != text]

    assert stale == [], "run: python tools/make_configuration_docs.py"


@pytest.mark.parametrize("block", [Experiment, *BLOCKS.values()], ids=lambda block: block.__name__)
def test_every_key_of_ours_is_documented(block):
    assert _undocumented(block) == []


def _undocumented(block: type) -> list[str]:
    assert is_dataclass(block)
    missing = []
    for each in entries(block):
        if each.shape.block:
            missing += _undocumented(each.shape.block)
        if not each.doc and each.shape.kind != "block":
            missing.append(f"{block.__name__}.{each.name}")
    return missing
