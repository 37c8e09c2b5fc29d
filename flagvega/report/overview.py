"""Two pictures of a plan at a glance: who holds which layers, and how long other layouts take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from flagvega.plan.compare import describe_degrees
from flagvega.plan.explain import Outlook
from flagvega.plan.space import Problem
from flagvega.report.planning import layers_of, seconds
from flagvega.report.svg import WIDTH

CHIP_COLOURS = ("#4e86d8", "#f0a63c", "#2f9e8f", "#a56fce", "#c9566d", "#8b939c")
_BOX, _GAP, _ROW = 66, 26, 30
_LETTER = 6.6
"""Width in px of a letter."""


@dataclass(frozen=True)
class StageBox:
    """A stage as the strip shows it."""

    chip: str
    lines: tuple[str, ...]
    share: float
    """Of the decoder layers."""
    next: str
    """The time of a transfer to the next stage; empty behind the last one."""


@dataclass(frozen=True)
class Bar:
    """A layout, or a cluster, and how long a step takes with it."""

    name: str
    step_s: float
    kind: str
    """``plan``, ``layout`` or ``cluster``."""


def stage_boxes(outlook: Outlook, problem: Problem) -> list[StageBox]:
    """A box for each stage."""
    total, boxes = problem.work.shape.layers, []
    transfers = [*(seconds(transfer_s) for transfer_s in outlook.pipeline.transfer), ""]
    for (side, work), step in zip(outlook.candidate.stages, transfers, strict=True):
        its = side.degrees
        devices = f"{its.size} device{'s' * (its.size > 1)}"
        lines = (layers_of(work), describe_degrees(its) if its.size > 1 else "", devices)
        boxes.append(StageBox(problem.machine.groups[side.group].chip, lines, work.num_layers / total, step))
    return boxes


def layout_svg(boxes: Sequence[StageBox]) -> str:
    """The pipeline as a row: the wider a stage, the more layers it has."""
    chips = list(dict.fromkeys(box.chip for box in boxes))
    least = min(90.0, 0.6 * WIDTH / len(boxes))
    room = WIDTH - _GAP * (len(boxes) - 1) - least * len(boxes)
    x, parts = 0.0, []
    for i, box in enumerate(boxes):
        width = least + room * box.share
        colour = CHIP_COLOURS[chips.index(box.chip) % len(CHIP_COLOURS)]
        title = escape(f"stage {i} on {box.chip}: {', '.join(line for line in box.lines if line)}")
        parts.append(
            f'<rect x="{x:.1f}" y="20" width="{width:.1f}" height="{_BOX}" rx="4" fill="{colour}">'
            f"<title>{title}</title></rect>"
        )
        shown = [line for line in box.lines if line and len(line) * _LETTER < width]
        for j, line in enumerate(shown):
            y = 20 + _BOX / 2 + 5 + 17 * (j - (len(shown) - 1) / 2)
            parts.append(f'<text x="{x + width / 2:.1f}" y="{y:.1f}" class="number">{escape(line)}</text>')
        parts.append(f'<text x="{x:.1f}" y="13" class="strong">{i}</text>')
        if box.next:
            middle = x + width + _GAP / 2
            parts.append(f'<line class="axis" x1="{x + width:.1f}" x2="{x + width + _GAP:.1f}" y1="53" y2="53"/>')
            parts.append(f'<text x="{middle:.1f}" y="{34 + _BOX}" class="middle">{box.next}</text>')
        x += width + _GAP
    return f'<svg viewBox="0 0 {WIDTH} {40 + _BOX}" role="img" aria-label="stages in order">{"".join(parts)}</svg>'


def chip_colours(boxes: Sequence[StageBox]) -> dict[str, str]:
    """The legend of :func:`layout_svg`."""
    chips = dict.fromkeys(box.chip for box in boxes)
    return {escape(chip): CHIP_COLOURS[i % len(CHIP_COLOURS)] for i, chip in enumerate(chips)}


BAR_COLOURS = {"plan": "#4e86d8", "layout": "#f0a63c", "cluster": "#2f9e8f"}


def comparison_svg(bars: Sequence[Bar]) -> str:
    """A bar for each; the first one is what the others are compared with."""
    left = min(470.0, 20 + _LETTER * max(len(bar.name) for bar in bars))
    most, parts = max(bar.step_s for bar in bars), []
    wide = (WIDTH - left - 150) / most
    for i, bar in enumerate(bars):
        # Adding zero turns -0 into 0.
        y, change = i * _ROW, round(bar.step_s / bars[0].step_s - 1, 3) + 0.0
        room = int((left - 14) / _LETTER)
        name = bar.name if len(bar.name) <= room else bar.name[: room - 1] + "\N{HORIZONTAL ELLIPSIS}"
        words = seconds(bar.step_s) + ("" if i == 0 else f"  {change:+.1%}")
        style = "strong" if i == 0 else "plain"
        label = f"{escape(name)}<title>{escape(bar.name)}</title>"
        parts.append(f'<text x="0" y="{y + 16}" class="{style}">{label}</text>')
        parts.append(f'<rect x="{left:.0f}" y="{y + 2}" width="{bar.step_s * wide:.1f}" height="{_ROW - 10}" rx="2" '
                     f'fill="{BAR_COLOURS[bar.kind]}"/>')  # fmt: skip
        parts.append(f'<text x="{left + bar.step_s * wide + 8:.1f}" y="{y + 16}">{words}</text>')
    return f'<svg viewBox="0 0 {WIDTH} {len(bars) * _ROW}" role="img" aria-label="compared">{"".join(parts)}</svg>'
