"""Which indexed files a run reads, and whether they are there: control side, no torch.

A prefix names ``<prefix>.bin`` (token ids) and ``<prefix>.idx`` (where documents begin), megatron-core's
format; ``tools/prepare_data.py`` writes ``<prefix>.json`` beside them, which says with which tokenizer.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from backends.megatron.vocabulary import read_json
from flagvega.errors import ConfigError, Fault

SPLIT_KEYS = ("train_data_path", "valid_data_path", "test_data_path")
DEFAULT_SPLIT = "969,30,1"
"""Megatron-LM's split for a ``data_path`` without one."""
TEXT_SUFFIX, MASK_SUFFIX = "_text_document", "_loss_mask_document"
"""FlagScale's names for a text and for the mask of those of its tokens that the loss counts."""
MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
"""Of an index: magic, version, element type, counts; then int32 lengths and int64 begins of sequences, documents."""
ELEMENT_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 8, 7: 4, 8: 2}
MASK_KEY = "apply_sft_dataset_separated_loss_mask_if_existed"


@dataclass(frozen=True)
class Blend:
    """Prefixes and the share of samples that each gives; without weights each is read once."""

    prefixes: tuple[str, ...]
    weights: tuple[float, ...] | None


@dataclass(frozen=True)
class Sources:
    """Where training, validation and test samples come from: one blend that is split, or one for each."""

    blend: Blend | None
    split: tuple[float, float, float]
    per_split: tuple[Blend | None, Blend | None, Blend | None]

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Every prefix once, in order."""
        blends = (self.blend, *self.per_split)
        return tuple(dict.fromkeys(prefix for blend in blends if blend for prefix in blend.prefixes))


def read_sources(arguments: Mapping[str, Any]) -> Sources | None:
    """The files that engine arguments name, None for ``mock_data``; ConfigError with all faults."""
    if arguments.get("mock_data"):
        return None
    faults: list[Fault] = []
    whole = _read_blend(arguments, "data_path", faults)
    train, valid, test = (_read_blend(arguments, key, faults) for key in SPLIT_KEYS)
    split = _read_split(arguments.get("split"), faults)
    given = [key for key in SPLIT_KEYS if arguments.get(key)]
    if arguments.get("data_path") and given:
        faults.append(Fault(f"data_path and {given[0]} exclude each other", given[0], "give one of the two"))
    elif not arguments.get("data_path") and not arguments.get("train_data_path"):
        fix = "prepare some with tools/prepare_data.py and give data_path, or try mock_data: true"
        faults.append(Fault("there is no training data", "data_path", fix))
    if faults:
        raise ConfigError(faults)
    return Sources(whole, split, (train, valid, test))


def check_data(arguments: Mapping[str, Any], vocab_size: int) -> list[Fault]:
    """Faults of the data that need no training: keys, missing files, ids that the model has no row for."""
    try:
        sources = read_sources(arguments)
    except ConfigError as error:
        return list(error.faults)
    if sources is None:
        return []
    faults = [fault for prefix in sources.prefixes for fault in _check_prefix(prefix, vocab_size)]
    return faults + (_check_masks(sources) if arguments.get(MASK_KEY) else [])


def _check_masks(sources: Sources) -> list[Fault]:
    found = [mask for prefix in sources.prefixes if (mask := mask_prefix(prefix))]
    if not found:
        what = f"no {MASK_SUFFIX} files beside the data"
        return [Fault(what, MASK_KEY, "prepare the data with --sft, or leave the key out")]
    return [fault for mask in found for fault in _check_files(mask)]


def mask_prefix(prefix: str) -> str | None:
    """The prefix of a dataset's loss mask, None when it has none."""
    found = prefix.removesuffix(TEXT_SUFFIX) + MASK_SUFFIX
    return found if Path(found + ".idx").exists() else None


def _check_prefix(prefix: str, vocab_size: int) -> list[Fault]:
    faults = _check_files(prefix)
    manifest = Path(prefix + ".json")
    written = read_json(manifest).get("vocab_size", 0) if manifest.exists() else 0
    if written > vocab_size:
        what = f"{prefix} was written with {written} token ids, the model has {vocab_size}"
        faults.append(Fault(what, "data_path", "use the tokenizer that prepared the data"))
    return faults


def _check_files(prefix: str) -> list[Fault]:
    missing = [suffix for suffix in (".bin", ".idx") if not Path(prefix + suffix).exists()]
    if missing:
        stem = re.sub(r"\.(bin|idx)$", "", prefix)
        fix = f"leave the ending out: {stem}" if stem != prefix else "tools/prepare_data.py writes such files"
        return [Fault(f"no such data: {prefix}{' and '.join(missing)}", "data_path", fix)]
    damage = find_damage(prefix)
    return [Fault(f"{prefix} is damaged: {damage}", "data_path", "prepare or copy it again")] if damage else []


def find_damage(prefix: str) -> str | None:
    """Why the files cannot be whole: their sizes against what the index says. None when they fit."""
    with Path(prefix + ".idx").open("rb") as file:
        header = file.read(HEADER.size)
        if len(header) < HEADER.size or not header.startswith(MAGIC):
            return ".idx is no index of token files"
        _, version, code, sequences, documents = HEADER.unpack(header)
        if version != 1 or code not in ELEMENT_BYTES:
            return f".idx has version {version} and element type {code}"
        lengths, pointers = HEADER.size, HEADER.size + 4 * sequences
        if os.fstat(file.fileno()).st_size != pointers + 8 * sequences + 8 * documents:
            return ".idx is cut short"
        last_length = _read_number(file, lengths + 4 * (sequences - 1), "<i") if sequences else 0
        last_begin = _read_number(file, pointers + 8 * (sequences - 1), "<q") if sequences else 0
    found, wanted = Path(prefix + ".bin").stat().st_size, last_begin + last_length * ELEMENT_BYTES[code]
    return None if found == wanted else f".bin has {found} bytes, .idx says {wanted}"


def _read_number(file: IO[bytes], at: int, form: str) -> int:
    file.seek(at)
    return int(struct.unpack(form, file.read(struct.calcsize(form)))[0])


def _read_blend(arguments: Mapping[str, Any], key: str, faults: list[Fault]) -> Blend | None:
    """``[prefix, ...]`` or ``[weight, prefix, weight, prefix, ...]``; one prefix may stand alone."""
    value = arguments.get(key)
    if not value:
        return None
    items: Sequence[Any] = [value] if isinstance(value, str) else list(value)
    weights = [_number(item) for item in items]
    if all(weight is None for weight in weights):
        return Blend(tuple(str(item).strip() for item in items), None)
    found = [weight for weight in weights[::2] if weight is not None and weight > 0]
    if len(items) % 2 or len(found) != len(items) // 2 or any(weight is not None for weight in weights[1::2]):
        faults.append(Fault(f"{key} mixes weights and prefixes: {items}", key, "write [0.3, prefix, 0.7, prefix]"))
        return None
    return Blend(tuple(str(item).strip() for item in items[1::2]), tuple(found))


def _number(item: Any) -> float | None:
    try:
        return float(item)
    except ValueError:
        return None


def _read_split(value: Any, faults: list[Fault]) -> tuple[float, float, float]:
    text = DEFAULT_SPLIT if value is None else value
    parts = list(text) if isinstance(text, (list, tuple)) else str(text).replace("/", ",").split(",")
    shares = [_number(part) for part in parts]
    numbers = [share for share in shares if share is not None and share >= 0]
    if len(numbers) != len(parts) or len(parts) > 3 or not sum(numbers):
        faults.append(Fault(f"split is not three shares: {value}", "split", "write train, valid, test: '90,5,5'"))
        return (1.0, 0.0, 0.0)
    train, valid, test = (share / sum(numbers) for share in (*numbers, 0.0, 0.0)[:3])
    return (train, valid, test)
