"""The rank side: ``torch.cuda``. Untested on hardware."""

from __future__ import annotations

from hardware.torch_device import TorchDevice

device = TorchDevice("cuda")
