"""Samples of a run on the rank side, through megatron-core's datasets.

A sample is known by its number alone: layouts decide who reads it, never what it is. megatron-core lets
global rank 0 write its index files and makes all ranks wait for it; here any rank may be the one that
writes (one of each host that has a disk of its own), and files appear whole or not at all.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig, MockGPTDataset
from megatron.core.datasets.indexed_dataset import IndexedDataset
from torch import Tensor

from backends.megatron.datafiles import MASK_KEY, Blend, Sources, check_data, mask_prefix, read_sources
from backends.megatron.vocabulary import Vocabulary
from flagvega.errors import ConfigError, Fault

logger = logging.getLogger(__name__)

SPLITS = ("training", "validation", "test")
NO_EOD = -2
"""An id that no token has (-1 pads)."""


class Dataset(Protocol):
    """Samples by number: tokens, labels, loss_mask and position_ids, each ``[seq_length]``.

    Documents that do not see each other come with an ``attention_mask`` ``[1, seq_length, seq_length]``, True hides.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class DatasetTokenizer:
    """What megatron-core's datasets ask of a tokenizer. It has no ``pad``, so no id is taken for padding."""

    vocab_size: int
    eod: int
    unique_identifiers: Mapping[str, Any]


class TextDataset(GPTDataset):
    """Token ids, and the loss mask beside them where there is one that the run wants."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        found = mask_prefix(self.dataset_path)
        if found and not self.config.apply_mask:
            logger.warning("%s is not used: %s is not set", found, MASK_KEY)
        self._mask = self._open_mask(found) if found and self.config.apply_mask else None

    def _open_mask(self, prefix: str) -> TextDataset:
        """This dataset's twin whose tokens are 1 where the loss counts and 0 elsewhere."""
        mask = IndexedDataset(prefix, mmap=self.config.mmap_bin_files)
        if not np.array_equal(mask.sequence_lengths, self.dataset.sequence_lengths):
            raise ConfigError(Fault(f"{prefix} does not fit {self.dataset_path}", "data_path", "prepare both again"))
        twin = copy.copy(self)
        twin.dataset = mask
        return twin

    def __getitem__(self, idx: int | None) -> dict[str, Tensor]:
        """One sample."""
        item: dict[str, Tensor] = super().__getitem__(idx)
        if self._mask is not None and idx is not None:
            counts, _ = self._mask._query_document_sample_shuffle_indices(idx)
            item["loss_mask"] = item["loss_mask"] * torch.from_numpy(counts[1:] > 0)
        return item


@dataclass
class TextDatasetConfig(GPTDatasetConfig):
    """megatron-core's, and whether loss masks beside the data apply."""

    apply_mask: bool = False


def build_datasets(
    arguments: Mapping[str, Any],
    vocabulary: Vocabulary,
    num_samples: tuple[int, int, int],
    *,
    cache: Path,
    owner: bool,
    barrier: Callable[[], None],
) -> tuple[Dataset | None, Dataset | None, Dataset | None]:
    """Training, validation and test samples, at least ``num_samples`` of each; None where none are wanted or given.

    Every rank calls this. Those with ``owner`` write index files under ``data_cache_path``, else ``cache``, then all
    meet in ``barrier`` and read them. ConfigError when files are missing or a split has no tokens.
    """
    faults = check_data(arguments, vocabulary.size)
    faults += _check_eod(arguments, vocabulary)
    if faults:
        raise ConfigError(faults)
    sources = read_sources(arguments)
    if sources is None:
        return _open(arguments, vocabulary, num_samples, None, None)
    _check_tokens(_dataset_config(arguments, vocabulary, sources, None), num_samples)
    root = Path(arguments.get("data_cache_path") or cache).expanduser()
    folder = root / _cache_key(arguments, vocabulary, num_samples, sources)
    if owner and not folder.is_dir():
        _build(folder, lambda path: _open(arguments, vocabulary, num_samples, sources, path))
    barrier()
    if not folder.is_dir():
        what = f"the index files {folder} that another rank wrote are not to be seen here"
        raise ConfigError(
            Fault(what, "data_cache_path", "use a folder that all hosts share, or one owner on each host")
        )
    return _open(arguments, vocabulary, num_samples, sources, folder)


def _check_eod(arguments: Mapping[str, Any], vocabulary: Vocabulary) -> list[Fault]:
    keys = ("reset_position_ids", "reset_attention_mask", "eod_mask_loss")
    needing = [] if vocabulary.eod is not None else [key for key in keys if arguments.get(key)]
    fix = "give the tokenizer's files, or leave the key out"
    return [Fault(f"{vocabulary.source} does not tell which id ends a document", key, fix) for key in needing]


def _check_tokens(config: TextDatasetConfig, num_samples: tuple[int, int, int]) -> None:
    """megatron-core counts epochs for ever where a split has no tokens, and asserts where a blend's part has none."""
    faults = []
    for i, name in enumerate(SPLITS):
        blend = config.blend or config.blend_per_split[i]
        share = config.split_matrix[i] if config.blend else (0.0, 1.0)
        if not num_samples[i] or not blend or not share:
            continue
        prefixes, weights = blend
        least = config.sequence_length + 1 if len(prefixes) > 1 and weights is None else 1
        for prefix in prefixes:
            dataset = IndexedDataset(prefix)  # kept: its arrays are views of a file that it unmaps when it goes
            begin, end = (round(bound * float(len(dataset))) for bound in share)
            tokens = int(dataset.sequence_lengths[begin:end].sum())
            if tokens < least:
                what = f"{prefix}: {tokens} tokens in {end - begin} of {len(dataset)} documents are too few for {name}"
                faults.append(Fault(what, "split", f"give {name} a larger share, or add documents"))
    if faults:
        raise ConfigError(faults)


def _cache_key(
    arguments: Mapping[str, Any], vocabulary: Vocabulary, num_samples: tuple[int, int, int], sources: Sources
) -> str:
    """Changes with all that decides the order of samples, the content of the files included."""
    stats = [Path(prefix + suffix).stat() for prefix in sources.prefixes for suffix in (".bin", ".idx")]
    facts = (
        repr(sources),
        num_samples,
        [(stat.st_size, stat.st_mtime_ns) for stat in stats],
        vocabulary.size,
        [arguments[key] for key in ("seed", "seq_length")],
    )
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _build(folder: Path, build: Callable[[Path], Any]) -> None:
    """Run ``build`` in a folder of its own that then takes its place; the first of several owners wins."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        what = f"cannot write index files: {error}"
        raise ConfigError(Fault(what, "data_cache_path", "give a folder that can be written")) from error
    try:
        build(scratch)
        scratch.chmod(0o755)
        try:
            scratch.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _open(
    arguments: Mapping[str, Any],
    vocabulary: Vocabulary,
    num_samples: tuple[int, int, int],
    sources: Sources | None,
    cache: Path | None,
) -> tuple[Dataset | None, Dataset | None, Dataset | None]:
    config = _dataset_config(arguments, vocabulary, sources, cache)
    for i, number in enumerate(num_samples):
        if not number:
            (config.split_matrix or config.blend_per_split)[i] = None
    with _alone():
        cls = TextDataset if sources else MockGPTDataset
        built = BlendedMegatronDatasetBuilder(cls, list(num_samples), lambda: True, config).build()
    for name, dataset, number in zip(SPLITS, built, num_samples, strict=True):
        if dataset is not None and len(dataset) < number:
            what = f"{name} has {len(dataset)} samples of the {number} that the run needs"
            raise ConfigError(Fault(what, "data_path", "give weights, [1, prefix, 1, prefix]: then prefixes repeat"))
    train, valid, test = built
    return train, valid, test


def _dataset_config(
    arguments: Mapping[str, Any], vocabulary: Vocabulary, sources: Sources | None, cache: Path | None
) -> TextDatasetConfig:
    eod = NO_EOD if vocabulary.eod is None else vocabulary.eod
    masked = arguments.get("reset_attention_mask") or arguments.get("create_attention_mask_in_dataloader")
    return TextDatasetConfig(
        random_seed=arguments["seed"],
        sequence_length=arguments["seq_length"],
        blend=_as_pair(sources.blend) if sources else None,
        blend_per_split=[_as_pair(blend) for blend in sources.per_split] if sources and not sources.blend else None,
        split=",".join(f"{share:.12f}" for share in sources.split) if sources and sources.blend else None,
        tokenizer=DatasetTokenizer(vocabulary.size, eod, {"vocab_size": vocabulary.size, "eod": eod}),
        path_to_cache=str(cache) if cache else None,
        num_dataset_builder_threads=arguments.get("num_dataset_builder_threads", 1),
        mmap_bin_files=arguments.get("mmap_bin_files", True),
        reset_position_ids=bool(arguments.get("reset_position_ids")),
        reset_attention_mask=bool(arguments.get("reset_attention_mask")),
        eod_mask_loss=bool(arguments.get("eod_mask_loss")),
        create_attention_mask=bool(masked),  # a plain causal mask is the attention's own business
        apply_mask=bool(arguments.get(MASK_KEY)),
    )


def _as_pair(blend: Blend | None) -> tuple[list[str], list[float] | None] | None:
    return (list(blend.prefixes), list(blend.weights) if blend.weights else None) if blend else None


@contextmanager
def _alone() -> Iterator[None]:
    """Datasets built within see one process: no barriers over all ranks, no rank 0 that alone may write."""
    real = torch.distributed.is_initialized, torch.distributed.get_rank
    torch.distributed.is_initialized, torch.distributed.get_rank = lambda: False, lambda group=None: 0
    try:
        yield
    finally:
        torch.distributed.is_initialized, torch.distributed.get_rank = real
