"""Which beginnings of prompts an instance has seen lately, and so need not read again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

BLOCK_CHARACTERS: Final = 256
BLOCK_TOKENS: Final = 64
MAX_BLOCKS: Final = 16_384
"""Blocks remembered per instance, about a million tokens; beyond, the oldest is forgotten, as in a cache."""


def hash_blocks(prompt: str | Sequence[int]) -> tuple[int, ...]:
    """A number for each beginning of a prompt that ends at a whole block; equal beginnings have equal numbers."""
    size = BLOCK_CHARACTERS if isinstance(prompt, str) else BLOCK_TOKENS
    found: list[int] = []
    before = 0
    for start in range(0, len(prompt) - size + 1, size):
        block = prompt[start : start + size]
        before = hash((before, block if isinstance(block, str) else tuple(block)))
        found.append(before)
    return tuple(found)


class Prefixes:
    """The blocks of one instance."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def num_known(self, blocks: Sequence[int]) -> int:
        """How many blocks from the beginning on are there."""
        for i, block in enumerate(blocks):
            if block not in self._blocks:
                return i
        return len(blocks)

    def add(self, blocks: Sequence[int]) -> None:
        """The instance reads a prompt of these blocks."""
        for block in reversed(blocks):  # the beginning is forgotten last
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > MAX_BLOCKS:
            self._blocks.popitem(last=False)

    def clear(self) -> None:
        """The instance was started anew."""
        self._blocks.clear()
