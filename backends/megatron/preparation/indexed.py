"""Writes megatron-core's indexed files, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from backends.megatron.datafiles import MASK_SUFFIX, TEXT_SUFFIX
from backends.megatron.preparation.encoding import Encoded
from flagvega.errors import ConfigError, Fault
from flagvega.records import write_json


def write_indexed(
    prefix: Path, batches: Iterable[Encoded], vocab_size: int, *, mask: bool, facts: dict[str, Any]
) -> Any:
    """Write ``<prefix>.bin``, ``.idx``, the loss mask beside them if wanted, and last ``<prefix>.json`` with ``facts``.

    Returns what the last one holds. ConfigError when there is not one token.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of kernels for training that are not installed
        from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    prefix.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=prefix.parent, prefix=f".{prefix.name}."))
    try:
        builders = {prefix: IndexedDatasetBuilder(str(scratch / "ids.bin"), dtype=DType.optimal_dtype(vocab_size))}
        if mask:
            builders[mask_of(prefix)] = IndexedDatasetBuilder(str(scratch / "mask.bin"), dtype=np.uint8)
        documents = tokens = 0
        for batch in batches:
            arrays: tuple[np.ndarray[Any, Any], ...] = (batch.ids, batch.counts)
            for builder, values in zip(builders.values(), arrays, strict=False):
                begin = 0
                for length in batch.lengths:
                    builder.add_document(values[begin : begin + length], [length])
                    begin += length
            documents, tokens = documents + len(batch.lengths), tokens + len(batch.ids)
        if not tokens:
            raise ConfigError(Fault("the input has no text", fix="nothing was written"))
        _remove_old(prefix)
        for (target, builder), stem in zip(builders.items(), ("ids", "mask"), strict=False):
            builder.finalize(str(scratch / f"{stem}.idx"))
            for suffix in (".bin", ".idx"):
                _keep(scratch / f"{stem}{suffix}", Path(f"{target}{suffix}"))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    written = {**facts, "documents": documents, "tokens": tokens, "vocab_size": vocab_size}
    write_json(f"{prefix}.json", written)
    return written


def mask_of(prefix: Path) -> Path:
    """The prefix of the loss mask of ``prefix``."""
    return prefix.with_name(prefix.name.removesuffix(TEXT_SUFFIX) + MASK_SUFFIX)


def _remove_old(prefix: Path) -> None:
    """What says that the files are whole goes first; a mask of other data must not stay."""
    for file in (f"{prefix}.json", f"{mask_of(prefix)}.idx", f"{mask_of(prefix)}.bin"):
        with suppress(FileNotFoundError):
            os.unlink(file)


def _keep(source: Path, target: Path) -> None:
    with source.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(source, target)
