"""The control side of AMD. Untested on hardware."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from flagvega.platform import Telemetry
from hardware.tools import find_tool
from hardware.vendor import VendorPlatform


class AmdPlatform(VendorPlatform):
    """AMD: a ROCm build of torch shows its devices as torch.cuda."""

    name = "amd"
    collective_backend = "nccl"
    # ROCR_VISIBLE_DEVICES would nest with it.
    visible_devices_env = ("HIP_VISIBLE_DEVICES",)
    precedence = 2
    tool = "rocm-smi"
    tool_folders = ("/opt/rocm/bin",)
    query = ("--showtemp", "--showpower", "--showuse", "--showmeminfo", "vram", "--json")
    packages = ("transformer_engine", "flash_attn", "amdsmi")
    features = frozenset({"bf16", "fp16", "transformer_engine", "flash_attn"})

    def present(self) -> bool:
        """Hygon's HIP looks like AMD's, but for its own tool."""
        return super().present() and find_tool("hy-smi", ("/opt/hyhal/bin",)) is None

    def parse(self, text: str) -> Sequence[Telemetry]:
        """Read an object of named readings a card."""
        cards = json.loads(text) if text else {}
        return [_reading(card) for name, card in cards.items() if name.startswith("card")]


def _reading(card: Mapping[str, str]) -> Telemetry:
    def find(words: str) -> float | None:
        return next((float(value) for key, value in card.items() if words in key and value != "N/A"), None)

    used, use = find("VRAM Total Used Memory"), find("GPU use")
    return Telemetry(
        used_bytes=None if used is None else int(used),
        utilization=None if use is None else use / 100,
        temperature_c=find("Temperature"),
        power_w=find("Package Power"),
    )


platform = AmdPlatform()
