"""What the metrics of a run say: how far, how fast, how long still."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

_GIB = 2**30
WINDOW = 20
"""Steps that rates are averaged over."""


class Progress:
    """The state of a run as its metrics tell it.

    ``facts``: ``total_steps``, ``total_samples``, ``flops_per_token`` and ``peak_flops`` (of all devices
    together, FLOP/s); each may be missing.
    """

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self.facts = facts
        self.first: dict[str, Any] | None = None
        self.last: dict[str, Any] | None = None
        self.samples = 0
        self._recent: deque[dict[str, Any]] = deque(maxlen=WINDOW)

    def add(self, row: dict[str, Any]) -> None:
        """Take in the metrics of one step."""
        self.first = self.first or row
        self.last = row
        self._recent.append(row)

    @property
    def tokens_per_s(self) -> float:
        """Mean rate of the last steps."""
        seconds = sum(row["iter_time_s"] for row in self._recent)
        return sum(row["tokens"] for row in self._recent) / seconds if seconds else math.nan

    @property
    def mfu(self) -> float | None:
        """Model FLOPs per second over the peak of all devices; None where either is unknown."""
        flops, peak = self.facts.get("flops_per_token"), self.facts.get("peak_flops")
        return float(self.tokens_per_s * flops / peak) if flops and peak else None

    @property
    def left_s(self) -> float | None:
        """Seconds until the last step, at the rate of the last steps."""
        total = self.facts.get("total_steps")
        if not total or not self.last or not self._recent:
            return None
        step_s = sum(row["iter_time_s"] for row in self._recent) / len(self._recent)
        return float(max(total - self.last["step"], 0) * step_s)

    def fields(self) -> dict[str, str]:
        """The last step in words, by name; what is unknown is left out."""
        if not self.last:
            return {}
        row, total = self.last, self.facts.get("total_steps")
        found = {
            "step": f"{row['step']}/{total}" if total else str(row["step"]),
            "loss": f"{row['loss']:.4f}",
            "grad norm": "-" if row["grad_norm"] is None else f"{row['grad_norm']:.3f}",
            "lr": f"{row['lr']:.2e}",
            "tokens/s": f"{self.tokens_per_s:,.0f}",
        }
        if self.mfu is not None:
            found["MFU"] = f"{self.mfu:.1%}"
        if row.get("busy"):
            found["busy"] = " ".join(f"{share:.0%}" for share in row["busy"])
        if row.get("peak_bytes"):
            found["peak GiB"] = " ".join(f"{held / _GIB:.3g}" for held in row["peak_bytes"])
        if row.get("valid_loss") is not None:
            found["valid loss"] = f"{row['valid_loss']:.4f}"
        if self.left_s is not None:
            found["left"] = duration(self.left_s)
        return found


def duration(seconds: float) -> str:
    """``1:02:03`` of seconds."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
