"""The control side of Cambricon. Untested on hardware."""

from __future__ import annotations

from hardware.vendor import VendorPlatform


class CambriconPlatform(VendorPlatform):
    """Cambricon MLU: torch_mlu."""

    name = "cambricon"
    collective_backend = "cncl"
    visible_devices_env = ("MLU_VISIBLE_DEVICES",)
    module = "torch_mlu"
    namespace = "mlu"
    tool = "cnmon"
    packages = ("torch_mlu",)


platform = CambriconPlatform()
