"""Documents to token ids, in order, by several processes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np

from backends.megatron.preparation.documents import Fields, Record, segments
from backends.megatron.tokenizer import Tokenizer, open_tokenizer
from flagvega.errors import ConfigError, Fault

BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class Recipe:
    """How text becomes ids: data that goes to every worker."""

    tokenizer: tuple[tuple[str, str], ...]
    """Engine arguments, as items: what the run that reads the data would give too."""
    fields: Fields = Fields()
    append_eod: bool = True


@dataclass(frozen=True)
class Encoded:
    """Some documents, one after the other."""

    ids: np.ndarray[tuple[int], np.dtype[np.int32]]
    counts: np.ndarray[tuple[int], np.dtype[np.uint8]]
    """1 where the loss counts the token."""
    lengths: list[int]
    characters: int


def encode(records: Iterable[Record], recipe: Recipe, num_workers: int) -> Iterator[Encoded]:
    """Encoded batches of documents in the records' order. Few batches are held at a time."""
    batches = _batches(records)
    if num_workers <= 1:
        tokenizer = open_tokenizer(dict(recipe.tokenizer))
        yield from (encode_batch(batch, tokenizer, recipe) for batch in batches)
        return
    with ProcessPoolExecutor(num_workers, get_context("spawn"), _open, (recipe,)) as pool:
        waiting: deque[Future[Encoded]] = deque()
        for batch in batches:
            waiting.append(pool.submit(_encode_here, batch))
            if len(waiting) > 2 * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def encode_batch(batch: list[Record], tokenizer: Tokenizer, recipe: Recipe) -> Encoded:
    """The documents of a batch; those without tokens are left out."""
    eod = tokenizer.vocabulary.eod
    if recipe.append_eod and eod is None:
        what = f"{tokenizer.vocabulary.source} does not tell which id ends a document"
        raise ConfigError(Fault(what, fix="give --no-append-eod, or name eos_token in tokenizer_config.json"))
    ids: list[int] = []
    counts: list[int] = []
    lengths = []
    for record in batch:
        before = len(ids)
        for segment in segments(record, recipe.fields):
            found = tokenizer.encode(segment.text)
            ids += found
            counts += [int(segment.counts)] * len(found)
        if len(ids) > before and recipe.append_eod and eod is not None:
            ids.append(eod)
            counts.append(1)
        if len(ids) > before:
            lengths.append(len(ids) - before)
    characters = sum(len(record.text) for record in batch)
    return Encoded(np.array(ids, dtype=np.int32), np.array(counts, dtype=np.uint8), lengths, characters)


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


_worker: tuple[Tokenizer, Recipe]


def _open(recipe: Recipe) -> None:
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker = (open_tokenizer(dict(recipe.tokenizer)), recipe)


def _encode_here(batch: list[Record]) -> Encoded:
    return encode_batch(batch, *_worker)
