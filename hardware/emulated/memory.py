"""Memory of an emulated chip: live tensor storage, counted and limited."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_MIB = 2**20


class LimitedMemory(TorchDispatchMode):
    """Sees every operation of the thread while it is entered, and every storage that comes out.

    :raises torch.OutOfMemoryError: from the operation whose result no longer fits.
    """

    def __init__(self, chip: str, limit_bytes: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._chip, self._limit_bytes = chip, limit_bytes
        self._live: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}
        self.used_bytes = 0
        self.peak_bytes = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and count what it made."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu" and leaf.layout == torch.strided:
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        known = self._live[key][1] if key in self._live else 0
        if size == known:
            return
        self._check(size - known)
        self._live[key] = (weakref.ref(storage, lambda _: self._forget(key)), size)
        self.used_bytes += size - known
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)

    def _forget(self, key: int) -> None:
        self.used_bytes -= self._live.pop(key)[1]

    def _check(self, more_bytes: int) -> None:
        free = self._limit_bytes - self.used_bytes
        if more_bytes > free:
            raise torch.OutOfMemoryError(
                f"{self._chip} out of memory. Tried to allocate {more_bytes / _MIB:.2f} MiB. The device has a total "
                f"capacity of {self._limit_bytes / _MIB:.2f} MiB of which {free / _MIB:.2f} MiB is free."
            )
