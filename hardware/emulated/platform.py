"""The control side of emulated chips: any host has any number of them, when its cluster names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flagvega.platform import FoundDevice, Platform


class EmulatedPlatform(Platform):
    """Never found; a cluster names them."""

    name = "emulated"
    collective_backend = "gloo"
    tested = True

    def detect(self) -> Sequence[FoundDevice]:
        """Nothing that is really here."""
        return []

    def env(self, chip: str, local: int, num_local: int) -> Mapping[str, str]:
        """One thread a rank: the chip's clock must be slower than the CPU, with all ranks of the host at work."""
        return {"OMP_NUM_THREADS": "1"}

    def supports(self, feature: str) -> bool:
        """What the CPU does."""
        return feature in ("bf16", "fp16")


platform = EmulatedPlatform()
