"""The control side of Enflame. Untested on hardware."""

from __future__ import annotations

from hardware.vendor import VendorPlatform


class EnflamePlatform(VendorPlatform):
    """Enflame GCU: torch_gcu."""

    name = "enflame"
    collective_backend = "eccl"
    visible_devices_env = ("TOPS_VISIBLE_DEVICES",)
    module = "torch_gcu"
    namespace = "gcu"
    tool = "efsmi"
    packages = ("torch_gcu",)


platform = EnflamePlatform()
