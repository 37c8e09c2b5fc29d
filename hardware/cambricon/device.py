"""The rank side: ``torch.mlu``. Untested on hardware."""

from __future__ import annotations

from hardware.torch_device import TorchDevice

device = TorchDevice("mlu", module="torch_mlu")
