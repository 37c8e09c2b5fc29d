"""Samples through megatron-core's datasets, one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backends.megatron.data import build_datasets
from backends.megatron.vocabulary import Vocabulary
from flagvega.errors import ConfigError

VOCABULARY = Vocabulary(256, 255, "test")
MASK_KEY = "apply_sft_dataset_separated_loss_mask_if_existed"


def write_documents(prefix: Path, documents: list[list[int]], dtype: type = np.uint16) -> str:
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in documents:
        builder.add_document(torch.tensor(document), [len(document)])
    builder.finalize(f"{prefix}.idx")
    return str(prefix)


def random_documents(seed: int, count: int = 40) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [[*generator.integers(0, 255, generator.integers(5, 60)).tolist(), 255] for _ in range(count)]


def build(tmp_path: Path, num_samples: tuple[int, int, int] = (50, 5, 0), **arguments: Any) -> Any:
    flat = {"seed": 1234, "seq_length": 16, "split": "90,10,0", **arguments}
    return build_datasets(flat, VOCABULARY, num_samples, cache=tmp_path / "cache", owner=True, barrier=lambda: None)


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return write_documents(tmp_path / "a_text_document", random_documents(0))


def test_labels_are_the_tokens_that_follow(tmp_path: Path, prefix: str) -> None:
    train, valid, test = build(tmp_path, data_path=[prefix])
    item = train[7]
    assert set(item) == {"tokens", "labels", "loss_mask", "position_ids"}
    assert all(value.shape == (16,) for value in item.values())
    assert torch.equal(item["tokens"][1:], item["labels"][:-1])
    assert (len(train) >= 50, len(valid) >= 5, test) == (True, True, None)


def test_order_does_not_change_with_the_number_of_validation_samples(tmp_path: Path, prefix: str) -> None:
    with_valid, without = (
        build(tmp_path, (50, 5, 0), data_path=[prefix]),
        build(tmp_path, (50, 0, 0), data_path=[prefix]),
    )
    assert without[1] is None
    assert all(torch.equal(with_valid[0][i]["tokens"], without[0][i]["tokens"]) for i in range(50))


def test_index_files_are_written_by_the_owner_before_the_barrier_and_read_by_all(tmp_path: Path, prefix: str) -> None:
    arguments = {"seed": 1, "seq_length": 16, "split": "1", "data_path": [prefix]}
    cache = tmp_path / "cache"
    seen: list[int] = []

    def barrier() -> None:
        seen.append(len(list(cache.glob("*/*shuffle_index.npy"))))

    for owner in (True, False):
        train, _, _ = build_datasets(arguments, VOCABULARY, (9, 0, 0), cache=cache, owner=owner, barrier=barrier)
        assert train is not None
    assert seen == [1, 1]
    assert not list(cache.glob(".*"))


def test_a_rank_that_sees_no_index_files_says_so(tmp_path: Path, prefix: str) -> None:
    arguments = {"seed": 1, "seq_length": 16, "split": "1", "data_path": [prefix]}
    with pytest.raises(ConfigError, match="not to be seen here"):
        build_datasets(arguments, VOCABULARY, (9, 0, 0), cache=tmp_path, owner=False, barrier=lambda: None)


def test_new_data_under_an_old_name_is_read_anew(tmp_path: Path, prefix: str) -> None:
    before = build(tmp_path, data_path=[prefix])[0][0]["tokens"]
    write_documents(Path(prefix), random_documents(1, count=30))
    assert not torch.equal(build(tmp_path, data_path=[prefix])[0][0]["tokens"], before)


def test_a_blend_draws_by_weight(tmp_path: Path) -> None:
    ones = write_documents(tmp_path / "ones", [[1] * 40] * 20)
    twos = write_documents(tmp_path / "twos", [[2] * 40] * 20)
    train = build(tmp_path, (100, 0, 0), data_path=[0.3, ones, 0.7, twos])[0]
    assert sum(int(train[i]["tokens"][0]) == 1 for i in range(100)) == 30


def test_each_split_may_have_its_own_files(tmp_path: Path) -> None:
    ones = write_documents(tmp_path / "ones", [[1] * 40] * 20)
    twos = write_documents(tmp_path / "twos", [[2] * 40] * 20)
    train, valid, test = build(tmp_path, train_data_path=[ones], valid_data_path=[twos], split=None)
    assert (int(train[0]["tokens"][0]), int(valid[0]["tokens"][0]), test) == (1, 2, None)


def test_too_few_samples_of_an_unweighted_blend_are_refused(tmp_path: Path) -> None:
    prefixes = [write_documents(tmp_path / name, [[1] * 40] * 20) for name in "ab"]
    with pytest.raises(ConfigError, match="of the 1000 that the run needs"):
        build(tmp_path, (1000, 0, 0), data_path=prefixes)


def test_a_split_without_tokens_is_refused_instead_of_hanging(tmp_path: Path) -> None:
    prefix = write_documents(tmp_path / "one", [[1] * 400])
    with pytest.raises(ConfigError, match="0 tokens in 0 of 1 documents are too few for validation"):
        build(tmp_path, data_path=[prefix])


def test_masks_count_only_the_tokens_they_mark(tmp_path: Path, prefix: str) -> None:
    documents = random_documents(0)
    masks = [[token % 2 for token in document] for document in documents]
    write_documents(tmp_path / "a_loss_mask_document", masks, np.uint8)
    train = build(tmp_path, data_path=[prefix], **{MASK_KEY: True})[0]
    for i in range(50):
        assert torch.equal(train[i]["loss_mask"], (train[i]["labels"] % 2).float())
    assert build(tmp_path, data_path=[prefix])[0][0]["loss_mask"].all()


def test_a_mask_of_other_lengths_is_refused(tmp_path: Path, prefix: str) -> None:
    write_documents(tmp_path / "a_loss_mask_document", [[1, 1]], np.uint8)
    with pytest.raises(ConfigError, match="does not fit"):
        build(tmp_path, data_path=[prefix], **{MASK_KEY: True})


def test_documents_are_kept_apart_when_asked(tmp_path: Path) -> None:
    prefix = write_documents(tmp_path / "a", [[7, 8, 255]] * 50)
    arguments = {"reset_position_ids": True, "reset_attention_mask": True, "eod_mask_loss": True}
    item = build(tmp_path, data_path=[prefix], **arguments)[0][3]
    end = item["tokens"].tolist().index(255)
    assert item["position_ids"][end + 1 : end + 4].tolist() == [0, 1, 2]
    assert item["loss_mask"][end] == 0
    assert item["attention_mask"][0, end + 1, end]  # True hides
    assert not item["attention_mask"][0, end + 2, end + 1]


def test_keeping_documents_apart_needs_an_id_that_ends_them(tmp_path: Path, prefix: str) -> None:
    arguments = {"seed": 1, "seq_length": 16, "data_path": [prefix], "eod_mask_loss": True}
    with pytest.raises(ConfigError, match="which id ends a document"):
        build_datasets(
            arguments, Vocabulary(256, None, "x"), (1, 0, 0), cache=tmp_path, owner=True, barrier=lambda: None
        )


def test_mock_data_needs_no_files(tmp_path: Path) -> None:
    train, valid, test = build(tmp_path, mock_data=True)
    assert torch.equal(train[3]["tokens"][1:], train[3]["labels"][:-1])
    assert (valid is None, test is None) == (False, True)
    assert not (tmp_path / "cache").exists()
