"""The control side of Intel. Untested on hardware."""

from __future__ import annotations

from hardware.tools import installed_versions, is_installed
from hardware.vendor import VendorPlatform


class IntelPlatform(VendorPlatform):
    """Intel GPUs: torch's own xpu device."""

    name = "intel"
    collective_backend = "xccl"
    visible_devices_env = ("ZE_AFFINITY_MASK",)
    namespace = "xpu"
    tool = "xpu-smi"
    packages = ("intel_extension_for_pytorch",)

    def present(self) -> bool:
        """xpu-smi is the name of Kunlunxin's tool too; Intel's torch has xpu in its version."""
        return "+xpu" in installed_versions(("torch",)).get("torch", "") or is_installed("intel_extension_for_pytorch")


platform = IntelPlatform()
