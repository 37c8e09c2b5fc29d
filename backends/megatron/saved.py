"""Tensors of a checkpoint (``torch_dist``) by name, read one at a time: no ranks, no megatron-core.

The index of such a checkpoint is a pickle. It is opened by a reader that makes the index's own few classes and
nothing else; tensors are opened with ``weights_only``.
"""

from __future__ import annotations

import io
import pickle  # nosec B403
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.distributed.checkpoint import filesystem, metadata, planner

from flagvega.errors import ConfigError, Fault

INDEX: Final = ".metadata"

_CLASSES: Final[dict[str, tuple[Any, tuple[str, ...]]]] = {
    "torch.distributed.checkpoint.metadata": (
        metadata,
        ("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta")
        + ("TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
    ),
    "torch.distributed.checkpoint.planner": (planner, ("SavePlan", "TensorWriteData", "WriteItem", "WriteItemType")),
    "torch.distributed.checkpoint.filesystem": (filesystem, ("_StorageInfo", "_StoragePrefix")),
    "torch.serialization": (torch.serialization, ("_get_layout",)),
}


class _IndexReader(pickle.Unpickler):
    """Makes what an index is made of."""

    def find_class(self, module: str, name: str) -> Any:
        """A class of the index, a size or an element type; UnpicklingError for anything else."""
        home, names = _CLASSES.get(module, (None, ()))
        if name in names:
            return getattr(home, name)
        found = getattr(torch, name, None) if module == "torch" and "." not in name else None
        if found is torch.Size or isinstance(found, torch.dtype):
            return found
        raise pickle.UnpicklingError(f"{module}.{name} does not belong in an index")


class SavedTensors:
    """The tensors of one checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = _read_index(folder / INDEX)
        self._tensors = {
            name: facts
            for name, facts in index.state_dict_metadata.items()
            if isinstance(facts, metadata.TensorStorageMetadata)
        }
        self._parts: dict[tuple[str, tuple[int, ...]], Any] = {
            (key.fqn, tuple(key.offset)): place
            for key, place in index.storage_data.items()
            if key.offset is not None
        }

    def names(self) -> tuple[str, ...]:
        """Every tensor's name."""
        return tuple(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a whole tensor."""
        return tuple(self._tensors[name].size)

    def dtype(self, name: str) -> torch.dtype:
        """The element type of a tensor."""
        found: torch.dtype = self._tensors[name].properties.dtype
        return found

    def tensor(self, name: str, entry: int | None = None) -> Tensor:
        """A whole tensor, or the one entry of its first dimension; only the parts that hold it are read.

        :raises ConfigError: when a part is missing or its file cannot be read.
        """
        facts = self._tensors[name]
        shape = self.shape(name)
        first, last = (0, shape[0]) if entry is None else (entry, entry + 1)
        found = torch.empty((last - first, *shape[1:]), dtype=self.dtype(name))
        num_filled = 0
        for chunk in facts.chunks:
            offsets, sizes = tuple(chunk.offsets), tuple(chunk.sizes)
            begin, end = max(first, offsets[0]), min(last, offsets[0] + sizes[0])
            if begin >= end:
                continue
            part = self._read(name, offsets)[begin - offsets[0] : end - offsets[0]]
            others = tuple(slice(at, at + size) for at, size in zip(offsets[1:], sizes[1:], strict=True))
            found[(slice(begin - first, end - first), *others)] = part
            num_filled += part.numel()
        if num_filled != found.numel():
            raise ConfigError(Fault(f"{name} is not complete", str(self.folder)))
        return found if entry is None else found[0]

    def _read(self, name: str, offsets: tuple[int, ...]) -> Tensor:
        place = self._parts[name, offsets]
        # A path in an index is a file's name: never a way out of the folder.
        file = self.folder / Path(place.relative_path).name
        try:
            with file.open("rb") as stream:
                stream.seek(place.offset)
                content = io.BytesIO(stream.read(place.length))
            found: Tensor = torch.load(content, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ConfigError(Fault(f"cannot read {name}: {error}", str(file))) from error
        return found


def _read_index(file: Path) -> metadata.Metadata:
    try:
        with file.open("rb") as stream:
            found = _IndexReader(stream).load()
    except (OSError, EOFError, pickle.UnpicklingError, AttributeError, TypeError) as error:
        raise ConfigError(Fault(f"cannot read the checkpoint's index: {error}", str(file))) from error
    if not isinstance(found, metadata.Metadata):
        raise ConfigError(Fault("is not a checkpoint's index", str(file)))
    return found
