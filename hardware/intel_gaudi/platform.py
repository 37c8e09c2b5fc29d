"""The control side of Intel Gaudi. Untested on hardware."""

from __future__ import annotations

from collections.abc import Sequence

from flagvega.platform import Telemetry
from hardware.vendor import VendorPlatform


class IntelGaudiPlatform(VendorPlatform):
    """Intel Gaudi: habana_frameworks."""

    name = "intel_gaudi"
    collective_backend = "hccl"
    visible_devices_env = ("HABANA_VISIBLE_MODULES",)
    module = "habana_frameworks.torch"
    namespace = "hpu"
    tool = "hl-smi"
    query = ("-Q", "memory.used,utilization.aip,temperature.aip,power.draw", "-f", "csv,noheader,nounits")
    packages = ("habana-torch-plugin",)
    features = frozenset({"bf16", "fp16"})
    # Eager mode, and integers that keep their width.
    environment = {"PT_HPU_LAZY_MODE": "0", "PT_ENABLE_INT64_SUPPORT": "1"}

    def parse(self, text: str) -> Sequence[Telemetry]:
        """Read a line of comma-separated numbers a device."""
        rows = [[float(value) for value in line.split(",")] for line in text.splitlines()]
        return [Telemetry(int(row[0]) * 2**20, row[1] / 100, row[2], row[3]) for row in rows]


platform = IntelGaudiPlatform()
