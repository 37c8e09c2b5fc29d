"""The control side of Iluvatar. Untested on hardware."""

from __future__ import annotations

from hardware.vendor import VendorPlatform


class IluvatarPlatform(VendorPlatform):
    """Iluvatar CoreX: a build of torch that shows its devices as torch.cuda."""

    name = "iluvatar"
    collective_backend = "nccl"
    visible_devices_env = ("CUDA_VISIBLE_DEVICES",)
    precedence = 1
    tool = "ixsmi"
    tool_folders = ("/usr/local/corex/bin",)


platform = IluvatarPlatform()
