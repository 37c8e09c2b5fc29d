"""The files in which a prompt's cache goes from one engine to another: the right one whole, or none."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backends.vllm.plugin.flagvega_handover.files import SWEEP_S, Facts, Folder, HandoverError, hash_tokens, is_name

FACTS = Facts("model", hash_tokens([1, 2, 3], []), 70, 32, 2)
LAYERS = ("a", "b")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "handover", keep_s=60)


def caches(fill: float | None = None) -> dict[str, torch.Tensor]:
    """Of an engine: 10 blocks of 32 tokens, random or all alike."""
    torch.manual_seed(3)
    return {name: torch.rand(10, 2, 32, 8) if fill is None else torch.full((10, 2, 32, 8), fill) for name in LAYERS}


def give(folder: Folder) -> tuple[str, dict[str, torch.Tensor]]:
    name, source = folder.new_name(), caches()
    for rank in range(2):
        folder.save(name, rank, {layer: cache[[7, 2, 5]] for layer, cache in source.items()}, FACTS)
    return name, source


def test_blocks_come_to_where_they_are_wanted_and_touch_nothing_else(folder: Folder) -> None:
    name, source = give(folder)
    assert folder.path.stat().st_mode & 0o077 == 0
    assert folder.find(name, FACTS)
    into = caches(9.0)
    folder.load(name, 1, into, 1, [0, 8])  # the first is there already
    for layer in LAYERS:
        assert torch.equal(into[layer][[0, 8]], source[layer][[2, 5]])
        assert (into[layer][[1, 2, 3, 4, 5, 6, 7, 9]] == 9.0).all()
    folder.remove(name, range(2))
    assert not folder.find(name, FACTS)
    assert list(folder.path.iterdir()) == []


@pytest.mark.parametrize(
    "other",
    [
        replace(FACTS, model="another"),
        replace(FACTS, tokens=hash_tokens([1, 2, 4], [])),
        replace(FACTS, tokens=hash_tokens([1, 2, 3], ["an adapter"])),
        replace(FACTS, num_tokens=71),
        replace(FACTS, block_size=16),
        replace(FACTS, num_ranks=1),
        replace(FACTS, num_ranks=3),
    ],
)
def test_a_cache_of_something_else_is_none(folder: Folder, other: Facts) -> None:
    name, _ = give(folder)
    assert not folder.find(name, other)


def tear(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize("spoil", [Path.unlink, tear, lambda file: file.write_bytes(b"")])
def test_a_file_that_is_not_whole_is_none(folder: Folder, spoil: Callable[[Path], None]) -> None:
    name, _ = give(folder)
    spoil(folder.path / f"{name}.0.safetensors")
    assert not folder.find(name, FACTS)
    with pytest.raises(HandoverError):
        folder.load(name, 0, caches(), 0, [0, 1, 2])


def test_blocks_that_do_not_fit_are_refused(folder: Folder) -> None:
    name, _ = give(folder)
    with pytest.raises(HandoverError, match="float32"):
        folder.load(name, 0, {"a": caches()["a"].half()}, 0, [0, 1, 2])
    with pytest.raises(HandoverError):
        folder.load(name, 0, {"c": caches()["a"]}, 0, [0])
    with pytest.raises(HandoverError, match=r"\(3, 2, 32, 8\)"):
        folder.load(name, 0, caches(), 0, [0, 1, 2, 3])


def test_what_cannot_be_written_leaves_nothing(folder: Folder) -> None:
    taken = folder.path / "f.0.safetensors"
    taken.mkdir()
    with pytest.raises(HandoverError):
        folder.save("f", 0, caches(), FACTS)
    assert list(folder.path.iterdir()) == [taken]
    assert not folder.find("f", replace(FACTS, num_ranks=1))


def test_what_nobody_came_for_is_removed_in_time(folder: Folder) -> None:
    old, _ = give(folder)
    new, _ = give(folder)
    for file in folder.path.glob(f"{old}*"):
        os.utime(file, (time.time() - 61,) * 2)
    folder.sweep()
    assert {file.name[:32] for file in folder.path.iterdir()} == {new}
    for file in folder.path.iterdir():
        os.utime(file, (time.time() - 61,) * 2)
    folder.sweep()  # not again so soon
    assert len(list(folder.path.iterdir())) == 2
    assert SWEEP_S < 60


@pytest.mark.parametrize("value", ["../../etc/passwd", "", "a" * 31, "A" * 32, "a" * 32 + "\n", None, 5, ["a" * 32]])
def test_names_from_outside_are_no_paths(folder: Folder, value: object) -> None:
    assert not is_name(value)
    assert is_name(folder.new_name())
