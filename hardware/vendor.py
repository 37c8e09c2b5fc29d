"""What most vendors share: a torch device found by the vendor's own torch, a tool that reports telemetry."""

from __future__ import annotations

import inspect
import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from flagvega.platform import Chip, FoundDevice, Platform, Telemetry, match_chip, read_chips
from hardware.tools import find_tool, installed_versions, is_installed, run_tool

_ASK_TIMEOUT_S = 120.0
_OPTIONAL = {"transformer_engine": "transformer_engine", "flash_attn": "flash_attn"}
"""Features that a vendor offers only where a package of it is installed."""

_log = logging.getLogger(__name__)


class VendorPlatform(Platform):
    """A vendor of accelerators; a subclass says what is its own.

    Subclasses with a ``module`` are here when it is installed, others when their ``tool`` is.
    """

    module: ClassVar[str] = ""
    """Package that brings the device to torch; empty where it is built into the vendor's torch."""
    namespace: ClassVar[str] = "cuda"
    """``torch.<namespace>`` stands for ``torch.cuda``."""
    tool: ClassVar[str] = ""
    tool_folders: ClassVar[tuple[str, ...]] = ()
    """Where the vendor installs its tool, if not in PATH."""
    query: ClassVar[tuple[str, ...] | None] = None
    """Arguments with which the tool prints what :meth:`parse` reads; None: no telemetry."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Packages whose versions matter."""
    features: ClassVar[frozenset[str]] = frozenset({"bf16", "fp16"})
    environment: ClassVar[Mapping[str, str]] = {}
    """Variables that a rank needs."""

    def present(self) -> bool:
        """Whether it is worth asking torch, which takes seconds."""
        return is_installed(self.module) if self.module else find_tool(self.tool, self.tool_folders) is not None

    def detect(self) -> Sequence[FoundDevice]:
        """The devices that the vendor's torch sees, asked in a process of its own."""
        if not self.present():
            return []
        return [self.describe(i, found["name"], found["memory_bytes"]) for i, found in enumerate(self._ask_torch())]

    def describe(self, index: int, name: str, memory_bytes: int | None, driver: str = "") -> FoundDevice:
        """A found device; one that ``chips.yaml`` does not list is the vendor's nameless chip."""
        chip = match_chip(name, self.chips().values(), memory_bytes)
        return FoundDevice(self.name, index, chip.name if chip else self.name, name, memory_bytes, driver)

    def _ask_torch(self) -> list[dict[str, Any]]:
        script = Path(__file__).with_name("ask_torch.py")
        argv = [sys.executable, "-P", str(script), self.module, self.namespace]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=_ASK_TIMEOUT_S, check=True)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            last = str(error.stderr or error).strip().splitlines()[-1]
            _log.warning("%s: its software is here, but torch does not answer: %s", self.name, last)
            return []
        found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
        return found

    def chips(self) -> Mapping[str, Chip]:
        """The vendor's chips, led by the nameless one without facts: any device that the file does not list."""
        nameless = Chip(self.name, self.name)
        return {self.name: nameless, **read_chips(Path(inspect.getfile(type(self))).with_name("chips.yaml"), self.name)}

    def env(self, chip: str, local: int, num_local: int) -> Mapping[str, str]:
        """Variables that the vendor's software needs; devices are selected by index, not by hiding others."""
        return self.environment

    def telemetry(self, index: int) -> Telemetry:
        """A reading by the vendor's tool; an empty one where the tool prints something else than we know."""
        tool = find_tool(self.tool, self.tool_folders)
        if self.query is None or tool is None:
            return Telemetry()
        try:
            readings = self.parse(run_tool([tool, *self.query]))
        except (ValueError, IndexError):
            return Telemetry()
        index = self._physical_index(index)
        return readings[index] if index < len(readings) else Telemetry()

    def parse(self, text: str) -> Sequence[Telemetry]:
        """Readings in what the tool prints, one a device."""
        return []

    def _physical_index(self, index: int) -> int:
        """The tool's number of a device: tools do not honour visible-devices variables."""
        for variable in self.visible_devices_env:
            visible = os.environ.get(variable, "").split(",")
            if all(entry.strip().isdigit() for entry in visible) and index < len(visible):
                return int(visible[index])
        return index

    def versions(self) -> Mapping[str, str]:
        """Versions of the vendor's packages."""
        return installed_versions(self.packages)

    def supports(self, feature: str) -> bool:
        """Whether the vendor offers a feature and, for kernels in packages, whether the package is here."""
        return feature in self.features and (feature not in _OPTIONAL or is_installed(_OPTIONAL[feature]))
