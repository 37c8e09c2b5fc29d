"""Writes safetensors files tensor by tensor: the header first, since every shape is known beforehand.

The library's own writer wants all tensors of a file in memory at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from torch import Tensor

CODES: Final[Mapping[torch.dtype, str]] = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
INDEX: Final = "model.safetensors.index.json"


@dataclass(frozen=True)
class Entry:
    """A tensor that will be written."""

    name: str
    shape: tuple[int, ...]


def plan_files(groups: Iterable[Sequence[Entry]], dtype: torch.dtype, max_bytes: int) -> dict[str, list[Entry]]:
    """File name -> its tensors, in order; the tensors of a group stay together, and a file has at least one group."""
    files: list[list[Entry]] = [[]]
    size = 0
    for group in groups:
        num_bytes = sum(_num_bytes(entry, dtype) for entry in group)
        if files[-1] and size + num_bytes > max_bytes:
            files.append([])
            size = 0
        files[-1] += group
        size += num_bytes
    if len(files) == 1:
        return {"model.safetensors": files[0]}
    return {f"model-{i:05d}-of-{len(files):05d}.safetensors": entries for i, entries in enumerate(files, 1)}


def _num_bytes(entry: Entry, dtype: torch.dtype) -> int:
    return prod(entry.shape) * dtype.itemsize


class SafeFile:
    """One file: tensors go to it in any order, each once."""

    def __init__(self, path: Path, entries: Sequence[Entry], dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._places: dict[str, tuple[int, int]] = {}
        at = 0
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        for entry in entries:
            end = at + _num_bytes(entry, dtype)
            header[entry.name] = {"dtype": CODES[dtype], "shape": list(entry.shape), "data_offsets": [at, end]}
            self._places[entry.name] = (at, end)
            at = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the data begin at a multiple of 8
        self._start = 8 + len(text)
        self._stream: BinaryIO = path.open("wb")
        self._stream.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, tensor: Tensor) -> None:
        """Put a tensor into its place, in the file's element type."""
        begin, end = self._places.pop(name)
        values: Any = tensor.to(self.dtype).contiguous().view(torch.uint8).numpy()
        content = memoryview(values)
        assert content.nbytes == end - begin, name
        self._stream.seek(self._start + begin)
        self._stream.write(content)

    def close(self) -> None:
        """Finish the file; every tensor must have been written."""
        assert not self._places, f"not written: {list(self._places)}"
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()


def index_of(files: Mapping[str, Sequence[Entry]], dtype: torch.dtype) -> dict[str, object]:
    """The content of ``model.safetensors.index.json``."""
    total = sum(_num_bytes(entry, dtype) for entries in files.values() for entry in entries)
    places = {entry.name: file for file, entries in files.items() for entry in entries}
    return {"metadata": {"total_size": total}, "weight_map": places}
