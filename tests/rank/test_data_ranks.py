"""Samples on several ranks: whoever writes the index files, all read the same."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from backends.megatron.data import build_datasets
from backends.megatron.vocabulary import Vocabulary

NUM_RANKS = 3


def write_documents(prefix: Path, seed: int) -> str:
    generator = np.random.default_rng(seed)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for _ in range(30):
        document = generator.integers(0, 100, generator.integers(5, 60))
        builder.add_document(document, [len(document)])
    builder.finalize(f"{prefix}.idx")
    return str(prefix)


def read_samples(rank: int, folder: Path, prefixes: list[str], owners: set[int]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=NUM_RANKS)
    arguments = {"seed": 3, "seq_length": 16, "split": "8,2", "data_path": [0.5, prefixes[0], 0.5, prefixes[1]]}
    train, valid, _ = build_datasets(
        arguments,
        Vocabulary(100, None, "test"),
        (40, 4, 0),
        cache=folder / "cache",
        owner=rank in owners,
        barrier=dist.barrier,
    )
    assert train is not None
    assert valid is not None
    samples = torch.stack([train[i]["tokens"] for i in range(40)] + [valid[i]["tokens"] for i in range(4)])
    gathered = [torch.empty_like(samples) for _ in range(NUM_RANKS)]
    dist.all_gather(gathered, samples)  # the real world is back in place
    assert all(torch.equal(other, samples) for other in gathered)
    if rank == 0:
        np.save(folder / "samples.npy", samples.numpy())
    dist.barrier()
    os._exit(0)


@pytest.mark.parametrize("owners", [{0}, {2}, {0, 1, 2}])
def test_all_ranks_read_the_same_samples_whoever_writes_the_index_files(tmp_path: Path, owners: set[int]) -> None:
    prefixes = [write_documents(tmp_path / name, seed) for seed, name in enumerate("ab")]
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=read_samples, args=(rank, tmp_path, prefixes, owners)) for rank in range(NUM_RANKS)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [0] * NUM_RANKS
    (folder,) = (tmp_path / "cache").iterdir()
    assert len(np.unique(np.load(tmp_path / "samples.npy"), axis=0)) > 30
    assert folder.name[0] != "."
