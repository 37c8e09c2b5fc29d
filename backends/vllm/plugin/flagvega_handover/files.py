"""The files that a prompt's cache is handed over in: one for each rank of an engine, whole or not there at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeGuard

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

SUFFIX: Final = ".safetensors"
SWEEP_S: Final = 10.0
_NAME: Final = re.compile(r"[0-9a-f]{32}")
_FACTS: Final = "handover"


class HandoverError(Exception):
    """What was handed over is not there, or is something else than was expected."""


@dataclass(frozen=True)
class Facts:
    """What a cache is of, and how it lies in blocks; a cache of other facts is none."""

    model: str
    tokens: str
    """Hash of the prompt."""
    num_tokens: int
    block_size: int
    """Tokens of a block."""
    num_ranks: int


def hash_tokens(token_ids: Sequence[int], others: Sequence[str]) -> str:
    """Hash of a prompt, and of what else its cache depends on (pictures, an adapter)."""
    words = json.dumps([list(token_ids), list(others)]).encode()
    return hashlib.sha256(words).hexdigest()


def is_name(value: Any) -> TypeGuard[str]:
    """Whether it names something that was handed over: it comes from outside, and becomes part of a path."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


class Folder:
    """Where caches lie between two engines."""

    def __init__(self, path: Path, keep_s: float) -> None:
        self.path, self.keep_s = path, keep_s
        self._swept = 0.0
        path.mkdir(mode=0o700, parents=True, exist_ok=True)  # prompts can be read out of caches

    def new_name(self) -> str:
        """A name that nothing has yet, and that nobody guesses."""
        return secrets.token_hex(16)

    def _file(self, name: str, rank: int) -> Path:
        return self.path / f"{name}.{rank}{SUFFIX}"

    def save(self, name: str, rank: int, blocks: Mapping[str, torch.Tensor], facts: Facts) -> None:
        """Write a rank's blocks (``[num_blocks, ...]`` a layer); they are there when this returns, and not before.

        :raises HandoverError: when they cannot be written.
        """
        file = self._file(name, rank)
        part = file.with_suffix(".part")
        try:
            save_file(dict(blocks), part, {_FACTS: json.dumps(asdict(facts))})
            os.replace(part, file)
        except (OSError, SafetensorError) as error:
            part.unlink(missing_ok=True)
            raise HandoverError(str(error)) from error

    def find(self, name: str, expected: Facts) -> bool:
        """Whether all ranks' blocks are there, of what is expected; they are then kept for longer."""
        try:
            for rank in range(expected.num_ranks):
                os.utime(self._file(name, rank))
            with safe_open(self._file(name, 0), "pt") as file:
                return (file.metadata() or {}).get(_FACTS) == json.dumps(asdict(expected))
        except (OSError, SafetensorError):
            return False

    def load(
        self, name: str, rank: int, into: Mapping[str, torch.Tensor], first: int, block_ids: Sequence[int]
    ) -> None:
        """Copy a rank's blocks from the ``first`` on to where ``block_ids`` say, of each layer (``[blocks, ...]``).

        :raises HandoverError: when they are not there, or do not fit; some may have been copied by then.
        """
        where = torch.tensor(block_ids)
        try:
            with safe_open(self._file(name, rank), "pt") as file:
                for layer, cache in into.items():
                    blocks = file.get_tensor(layer)[first : first + len(block_ids)]
                    if blocks.dtype != cache.dtype or blocks.shape != (len(block_ids), *cache.shape[1:]):
                        raise HandoverError(f"{layer} is {blocks.dtype} {tuple(blocks.shape)}")
                    cache[where] = blocks.to(cache.device)
        except (OSError, SafetensorError) as error:
            raise HandoverError(str(error)) from error

    def remove(self, name: str, ranks: Sequence[int]) -> None:
        """Forget what was handed over."""
        for rank in ranks:
            self._file(name, rank).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove, once in a while, what nobody came for."""
        now = time.time()
        if now - self._swept < SWEEP_S:
            return
        self._swept = now
        for file in self.path.iterdir():
            with suppress(FileNotFoundError):  # taken in the meantime
                if now - file.stat().st_mtime > self.keep_s:
                    file.unlink()
