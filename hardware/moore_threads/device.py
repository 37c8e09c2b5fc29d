"""The rank side: ``torch.musa``. Untested on hardware."""

from __future__ import annotations

from hardware.torch_device import TorchDevice

device = TorchDevice("musa", module="torch_musa")
