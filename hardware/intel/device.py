"""The rank side: ``torch.xpu``. Untested on hardware."""

from __future__ import annotations

from hardware.torch_device import TorchDevice

device = TorchDevice("xpu")
