"""The rank side of a CPU."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from flagvega.platform import Device
from hardware.cpu import namespace


class CpuDevice(Device):
    """Tensors live in host memory."""

    type = "cpu"

    def open(self, chip: str, local: int) -> torch.device:
        """The CPU; every rank has the same one."""
        return namespace.CPU

    @property
    def namespace(self) -> ModuleType | Any:
        """What answers ``torch.cuda``'s questions."""
        return namespace

    def peak_bytes(self) -> int:
        """Most resident bytes of the process: a CPU does not count tensors apart."""
        return namespace.max_memory_allocated()


device = CpuDevice()
