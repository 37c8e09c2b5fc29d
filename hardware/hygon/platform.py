"""The control side of Hygon. Untested on hardware."""

from __future__ import annotations

import re
from collections.abc import Sequence

from flagvega.platform import Telemetry
from hardware.vendor import VendorPlatform


class HygonPlatform(VendorPlatform):
    """Hygon DCU: a DTK build of torch that shows its devices as torch.cuda."""

    name = "hygon"
    collective_backend = "nccl"
    visible_devices_env = ("HIP_VISIBLE_DEVICES",)
    precedence = 1
    tool = "hy-smi"
    tool_folders = ("/opt/hyhal/bin",)
    query = ()

    def parse(self, text: str) -> Sequence[Telemetry]:
        """Read a row a device: index, temperature, power, mode, power cap, memory share, utilization."""
        return [
            Telemetry(None, float(use) / 100, float(temperature), float(power))
            for temperature, power, use in _ROW.findall(text)
        ]


_ROW = re.compile(r"^\d+ +([\d.]+)C +([\d.]+)W +\S+ +\S+ +[\d.]+% +([\d.]+)% +Normal", re.MULTILINE)


platform = HygonPlatform()
