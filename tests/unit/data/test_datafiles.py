"""Which files a run reads, from keys alone."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from backends.megatron.datafiles import Blend, check_data, mask_prefix, read_sources
from flagvega.errors import ConfigError


def write(prefix: Path) -> str:
    """Three tokens of uint16 in two documents, as megatron-core lays them out."""
    header = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 8, 2, 3)
    Path(f"{prefix}.idx").write_bytes(header + struct.pack("<2i2q3q", 1, 2, 0, 2, 0, 1, 2))
    Path(f"{prefix}.bin").write_bytes(struct.pack("<3H", 7, 8, 9))
    return str(prefix)


@pytest.mark.parametrize(
    ("value", "blend"),
    [
        ("a", Blend(("a",), None)),
        (["a"], Blend(("a",), None)),
        (["a", "b"], Blend(("a", "b"), None)),
        ([0.3, "a", 0.7, "b"], Blend(("a", "b"), (0.3, 0.7))),
        (["30", "a", "70", "b"], Blend(("a", "b"), (30.0, 70.0))),
        ([1, "a"], Blend(("a",), (1.0,))),
    ],
)
def test_a_blend_is_prefixes_or_weights_and_prefixes(value: object, blend: Blend) -> None:
    sources = read_sources({"data_path": value})
    assert sources is not None
    assert sources.blend == blend


@pytest.mark.parametrize("value", [[0.3, "a", "b"], ["a", 0.3], [0.3, "a", "b", 0.7], [-1, "a", 2, "b"]])
def test_a_blend_that_mixes_them_is_refused(value: list[object]) -> None:
    with pytest.raises(ConfigError, match="mixes weights and prefixes"):
        read_sources({"data_path": value})


@pytest.mark.parametrize(
    ("value", "split"),
    [(None, (0.969, 0.03, 0.001)), (1, (1, 0, 0)), ("90,5,5", (0.9, 0.05, 0.05)), ([3, 1], (0.75, 0.25, 0))],
)
def test_a_split_is_up_to_three_shares(value: object, split: tuple[float, ...]) -> None:
    sources = read_sources({"data_path": "a", "split": value})
    assert sources is not None
    assert sources.split == pytest.approx(split)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "no training data"),
        ({"data_path": "a", "train_data_path": "b"}, "exclude each other"),
        ({"data_path": "a", "split": "much"}, "not three shares"),
        ({"data_path": "/nowhere/a"}, r"no such data: /nowhere/a.bin and .idx"),
        ({"data_path": "/nowhere/a.bin"}, "leave the ending out: /nowhere/a$"),
    ],
)
def test_what_is_wrong_with_the_data_is_said(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        raise ConfigError(check_data(arguments, 100))


def test_mock_data_needs_no_files() -> None:
    assert check_data({"mock_data": True}, 100) == []


def test_data_of_a_larger_vocabulary_is_refused(tmp_path: Path) -> None:
    prefix = write(tmp_path / "a_text_document")
    Path(prefix + ".json").write_text(json.dumps({"vocab_size": 101}))
    assert check_data({"data_path": prefix}, 101) == []
    assert "101 token ids" in check_data({"data_path": prefix}, 100)[0].what


def test_our_sketch_of_the_format_is_megatrons(tmp_path: Path) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(write(tmp_path / "a"))
    assert [dataset[i].tolist() for i in range(len(dataset))] == [[7], [8, 9]]


@pytest.mark.parametrize(
    ("suffix", "size", "words"),
    [
        (".bin", 5, ".bin has 5 bytes, .idx says 6"),
        (".idx", 60, ".idx is cut short"),
        (".idx", 20, "no index"),
    ],
)
def test_files_that_were_cut_short_are_told_before_training(tmp_path: Path, suffix: str, size: int, words: str) -> None:
    prefix = write(tmp_path / "a")
    assert check_data({"data_path": prefix}, 100) == []
    content = Path(prefix + suffix).read_bytes()
    Path(prefix + suffix).write_bytes(content[:size])
    assert words in check_data({"data_path": prefix}, 100)[0].what


def test_a_mask_that_is_asked_for_must_exist(tmp_path: Path) -> None:
    prefix = write(tmp_path / "a_text_document")
    arguments = {"data_path": prefix, "apply_sft_dataset_separated_loss_mask_if_existed": True}
    assert mask_prefix(prefix) is None
    assert len(check_data(arguments, 100)) == 1
    mask = write(tmp_path / "a_loss_mask_document")
    assert mask_prefix(prefix) == mask
    assert check_data(arguments, 100) == []
