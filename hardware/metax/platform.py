"""The control side of Metax. Untested on hardware."""

from __future__ import annotations

from hardware.vendor import VendorPlatform


class MetaxPlatform(VendorPlatform):
    """MetaX: a MACA build of torch that shows its devices as torch.cuda; it has no NVML."""

    name = "metax"
    collective_backend = "nccl"
    visible_devices_env = ("CUDA_VISIBLE_DEVICES",)
    precedence = 1
    tool = "mx-smi"


platform = MetaxPlatform()
