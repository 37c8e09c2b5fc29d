"""The control side of Kunlunxin. Untested on hardware."""

from __future__ import annotations

import os
from collections.abc import Sequence

from flagvega.platform import Telemetry
from hardware.tools import is_installed
from hardware.vendor import VendorPlatform


class KunlunxinPlatform(VendorPlatform):
    """Kunlunxin: a build of torch that shows its devices as torch.cuda."""

    name = "kunlunxin"
    collective_backend = "nccl"
    visible_devices_env = ("XPU_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
    precedence = 1
    tool = "xpu-smi"
    query = ("-m",)
    packages = ("torch_xmlir",)

    def present(self) -> bool:
        """xpu-smi is the name of Intel's tool too, so the tool alone says nothing."""
        marked = os.environ.get("XPU", "").lower() in ("1", "true")
        return marked or (super().present() and is_installed("torch_xmlir"))

    def parse(self, text: str) -> Sequence[Telemetry]:
        """Read a line of numbers a device; those at 4, 8, 17, 19 are temperature, power, used MiB, utilization."""
        rows = [line.split() for line in text.splitlines()]
        return [
            Telemetry(int(row[17]) * 2**20, float(row[19]) / 100, float(row[4]), float(row[8]))
            for row in rows
            if len(row) > 19
        ]


platform = KunlunxinPlatform()
