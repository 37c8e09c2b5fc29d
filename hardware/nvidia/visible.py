"""NVML's devices as CUDA sees them: CUDA_VISIBLE_DEVICES and MIG applied, which NVML ignores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pynvml

_NVIDIA_PCI_VENDOR = 0x10DE


@dataclass(frozen=True)
class NvmlDevice:
    """A GPU, or a MIG slice of one."""

    handle: Any
    uuid: str
    name: str
    memory_bytes: int
    parent: Any = None
    """Handle of the GPU that a slice is of; what slices do not tell is asked there."""

    @property
    def gpu(self) -> Any:
        """Handle of the whole GPU."""
        return self.parent or self.handle


@contextmanager
def nvml() -> Iterator[bool]:
    """NVML, open; False where there is no driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield False
        return
    try:
        yield True
    finally:
        pynvml.nvmlShutdown()


def list_gpus() -> list[NvmlDevice]:
    """GPUs in PCI order. Vendors that imitate NVML are not NVIDIA and are left out."""
    handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    return [_device(handle) for handle in handles if _pci_vendor(handle) == _NVIDIA_PCI_VENDOR]


def list_slices(gpu: NvmlDevice) -> list[NvmlDevice]:
    """MIG slices of a GPU; empty where MIG is off or unknown."""
    try:
        if not pynvml.nvmlDeviceGetMigMode(gpu.handle)[0]:
            return []
        count = pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu.handle)
    except pynvml.NVMLError:
        return []
    found = []
    for i in range(count):
        try:
            handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu.handle, i)
        except pynvml.NVMLError_NotFound:
            continue
        found.append(_device(handle, parent=gpu.handle))
    return found


def select_visible(
    gpus: Sequence[NvmlDevice], slices: Mapping[str, Sequence[NvmlDevice]], visible: str | None
) -> list[NvmlDevice]:
    """The devices that CUDA numbers 0, 1, ... for a value of CUDA_VISIBLE_DEVICES.

    CUDA takes indices, UUIDs or their beginnings, and MIG UUIDs, and stops at the first entry that
    names nothing. A GPU in MIG mode stands for its first slice.

    :param slices: MIG slices by UUID of their GPU.
    :param visible: the variable's value; None when it is not set.
    """

    def usable(gpu: NvmlDevice) -> NvmlDevice:
        return next(iter(slices.get(gpu.uuid, ())), gpu)

    if visible is None:
        return [usable(gpu) for gpu in gpus]
    selected: list[NvmlDevice] = []
    for entry in (entry.strip() for entry in visible.split(",")):
        device = _by_index(gpus, entry) if entry.isdigit() else _by_uuid(gpus, slices, entry)
        if device is None:
            break
        selected.append(usable(device))
    return selected


def _by_index(gpus: Sequence[NvmlDevice], entry: str) -> NvmlDevice | None:
    return gpus[int(entry)] if int(entry) < len(gpus) else None


def _by_uuid(gpus: Sequence[NvmlDevice], slices: Mapping[str, Sequence[NvmlDevice]], entry: str) -> NvmlDevice | None:
    candidates = [*gpus, *(piece for pieces in slices.values() for piece in pieces)]
    found = [device for device in candidates if device.uuid.startswith(entry)] if entry[:4] in ("GPU-", "MIG-") else []
    return found[0] if len(found) == 1 else None


def _device(handle: Any, parent: Any = None) -> NvmlDevice:
    return NvmlDevice(
        handle=handle,
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        name=pynvml.nvmlDeviceGetName(handle),
        memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
        parent=parent,
    )


def _pci_vendor(handle: Any) -> int:
    return int(pynvml.nvmlDeviceGetPciInfo(handle).pciDeviceId) & 0xFFFF
