"""The rank side: ``torch.hpu``. Untested on hardware."""

from __future__ import annotations

from hardware.torch_device import TorchDevice

device = TorchDevice("hpu", module="habana_frameworks.torch")
