"""The control side of Ascend. Untested on hardware."""

from __future__ import annotations

import re
from collections.abc import Sequence

from flagvega.platform import Telemetry
from hardware.vendor import VendorPlatform


class AscendPlatform(VendorPlatform):
    """Huawei Ascend: torch_npu."""

    name = "ascend"
    collective_backend = "hccl"
    visible_devices_env = ("ASCEND_RT_VISIBLE_DEVICES",)
    module = "torch_npu"
    namespace = "npu"
    tool = "npu-smi"
    query = ("info",)
    packages = ("torch_npu", "mindspeed")

    def parse(self, text: str) -> Sequence[Telemetry]:
        """Read two rows a device: power and temperature; utilization, host pages and memory."""
        return [
            Telemetry(int(used) * 2**20, int(use) / 100, float(temperature), float(power))
            for power, temperature, use, used in _ROWS.findall(text)
        ]


_ROWS = re.compile(
    r"\| OK +\| ([\d.]+) +(\d+)[^|]*\|\n"
    r"\|[^|]*\|[^|]*\| (\d+) .*?(\d+) */ *\d+ *\|\n"
)


platform = AscendPlatform()
