"""The control side of nothing: any size validates and dry-runs."""

from __future__ import annotations

from collections.abc import Sequence

from flagvega.platform import FoundDevice, Platform


class NullPlatform(Platform):
    """Never found; a cluster names it."""

    name = "null"
    collective_backend = "none"
    tested = True

    def detect(self) -> Sequence[FoundDevice]:
        """Never here."""
        return []

    def supports(self, feature: str) -> bool:
        """Nothing stands in the way of a plan."""
        return True


platform = NullPlatform()
