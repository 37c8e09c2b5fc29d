"""The control side of Moore Threads. Untested on hardware."""

from __future__ import annotations

import re
from collections.abc import Sequence

from flagvega.platform import Telemetry
from hardware.vendor import VendorPlatform


class MooreThreadsPlatform(VendorPlatform):
    """Moore Threads MUSA: torch_musa."""

    name = "moore_threads"
    collective_backend = "mccl"
    visible_devices_env = ("MUSA_VISIBLE_DEVICES",)
    module = "torch_musa"
    namespace = "musa"
    tool = "mthreads-gmi"
    query = ("-q",)
    packages = ("torch_musa", "transformer_engine")
    features = frozenset({"bf16", "fp16", "transformer_engine"})

    def parse(self, text: str) -> Sequence[Telemetry]:
        """Read ``name : value unit`` lines, repeated for each device."""
        used, use, temperature, power = (
            [float(value) for value in re.findall(rf"^\s*{name}\s*: *([\d.]+)", text, re.MULTILINE)]
            for name in ("Used", "Gpu", "GPU Current Temp", "Power Draw")
        )
        return [
            Telemetry(int(mib) * 2**20, percent / 100, celsius, watts)
            for mib, percent, celsius, watts in zip(used, use, temperature, power, strict=False)
        ]


platform = MooreThreadsPlatform()
