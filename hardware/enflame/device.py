"""The rank side: ``torch.gcu``. Untested on hardware."""

from __future__ import annotations

from hardware.torch_device import TorchDevice

device = TorchDevice("gcu", module="torch_gcu")
