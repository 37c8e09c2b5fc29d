"""The rank side that vendors share: ``torch.<namespace>`` speaks like ``torch.cuda``."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch

from flagvega.errors import PreflightError
from flagvega.platform import Device


class TorchDevice(Device):
    """A device that torch, or a package of the vendor, offers under a name of its own.

    :param type: torch's device type, and the name of its namespace.
    :param module: package to import first, empty where torch has the device built in.
    """

    def __init__(self, type: str, module: str = "") -> None:
        self.type, self.module = type, module

    def open(self, chip: str, local: int) -> torch.device:
        """Take the ``local``-th visible device; one that sees a single device takes that.

        :raises PreflightError: the vendor's package does not load or shows no device.
        """
        if self.module:
            try:
                importlib.import_module(self.module)
            except ImportError as error:
                raise PreflightError(f"chip '{chip}' needs {self.module}, which does not load: {error}") from error
        num_devices = self.namespace.device_count() if hasattr(torch, self.type) else 0
        if not num_devices:
            raise PreflightError(f"chip '{chip}': torch {torch.__version__} shows no {self.type} device")
        device = torch.device(self.type, local % num_devices)
        self.namespace.set_device(device)
        return device

    @property
    def namespace(self) -> ModuleType | Any:
        """``torch.<type>``."""
        return getattr(torch, self.type)

    def peak_bytes(self) -> int:
        """Most bytes of tensors held so far."""
        return int(self.namespace.max_memory_allocated())
