"""The rank side: ``torch.npu``. Untested on hardware."""

from __future__ import annotations

from hardware.torch_device import TorchDevice

device = TorchDevice("npu", module="torch_npu")
