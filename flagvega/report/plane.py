"""A plane with two axes as SVG: values become places in a picture, with ticks and names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from flagvega.report.timeline import ticks

LEFT, BOTTOM, TOP, RIGHT = 62, 44, 14, 16


@dataclass(frozen=True)
class Plane:
    """From values to places in a picture."""

    low: tuple[float, float]
    high: tuple[float, float]
    names: tuple[str, str]
    width: int = 560
    height: int = 340

    def x(self, value: float) -> float:
        """Place of a value of the horizontal axis."""
        return LEFT + (value - self.low[0]) / ((self.high[0] - self.low[0]) or 1) * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Place of a value of the vertical axis."""
        share = (value - self.low[1]) / ((self.high[1] - self.low[1]) or 1)
        return self.bottom - share * (self.bottom - TOP)

    @property
    def bottom(self) -> int:
        """Place of the horizontal axis."""
        return self.height - BOTTOM

    def picture(self, parts: Sequence[str]) -> str:
        """The axes with what is drawn in them."""
        right, bottom = self.width - RIGHT, self.bottom
        axes = [
            f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>',
            f'<line class="axis" x1="{LEFT}" x2="{LEFT}" y1="{TOP}" y2="{bottom}"/>',
        ]
        for tick in ticks(self.low[0], self.high[0], 6):
            axes.append(f'<text class="middle" x="{self.x(tick):.1f}" y="{bottom + 16}">{tick:g}</text>')
        for tick in ticks(self.low[1], self.high[1], 6):
            axes.append(f'<text x="{LEFT - 8}" y="{self.y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
        middle = (LEFT + right) / 2
        axes.append(f'<text class="middle" x="{middle}" y="{self.height - 8}">{escape(self.names[0])}</text>')
        turned = f'transform="translate(14 {(TOP + bottom) / 2}) rotate(-90)"'
        axes.append(f'<text class="middle" {turned}>{escape(self.names[1])}</text>')
        label = escape(f"{self.names[1]} over {self.names[0]}")
        view = f'viewBox="0 0 {self.width} {self.height}"'
        return f'<svg {view} role="img" aria-label="{label}">{"".join([*axes, *parts])}</svg>'
