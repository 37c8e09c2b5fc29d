"""Pictures of a plan as SVG inside a page; its style sheet gives text and grounds their colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from flagvega.report.timeline import COLOURS, Span, Timeline, Window, picture_windows, ticks, unit_of

WIDTH, LEFT, RIGHT, TOP = 1180, 118, 66, 24
BAR, GAP, LINK = 26, 16, 6
"""Heights in px: a stage, what is between two, and each direction of the boundary there."""
MEMORY_COLOURS: Mapping[str, str] = {
    "weights": "#4e86d8",
    "gradients": "#2f9e8f",
    "optimizer": "#c9566d",
    "activations": "#f0a63c",
    "workspace": "#a56fce",
    "context": "#8b939c",
}
_DIGIT = 6.5
"""Width in px of a digit on a bar."""
_LABEL = 17
"""Characters of a chip's name that there is room for."""
_GIB = 2**30


@dataclass(frozen=True)
class MemoryBar:
    """What one device of a stage holds, by the names of :data:`MEMORY_COLOURS`, in bytes."""

    chip: str
    parts: Mapping[str, float]
    limit_bytes: float


def timeline_svg(timeline: Timeline) -> str:
    """One picture, or two (beginning and end) of a step with very many micro-batches."""
    shown = picture_windows(timeline)
    return "\n".join(_window(timeline, window) for window in shown)


def legend(colours: Mapping[str, str], extra: Mapping[str, str]) -> str:
    """Names beside their colours; ``extra`` by style class."""
    items = [f'<span><i style="background:{colour}"></i>{name}</span>' for name, colour in colours.items()]
    items += [f'<span><i class="{style}"></i>{name}</span>' for name, style in extra.items()]
    return f'<p class="legend">{"".join(items)}</p>'


def timeline_legend() -> str:
    """The legend of :func:`timeline_svg`."""
    return legend({str(kind): colour for kind, colour in COLOURS.items()}, {"idle": "idle"})


def _window(timeline: Timeline, window: Window) -> str:
    num = len(timeline.lanes)
    bottom = TOP + num * (BAR + GAP) - (0 if timeline.is_ring else GAP)
    wide = (WIDTH - LEFT - RIGHT) / (window.end_s - window.begin_s)

    def x(time_s: float) -> float:
        return LEFT + (min(max(time_s, window.begin_s), window.end_s) - window.begin_s) * wide

    parts = [f'<text x="{WIDTH - RIGHT + 8}" y="{TOP - 9}">idle</text>']
    for i, lane in enumerate(timeline.lanes):
        y = TOP + i * (BAR + GAP)
        parts += _label(i, lane.chip, y)
        parts.append(f'<rect class="idle" x="{LEFT}" y="{y}" width="{WIDTH - LEFT - RIGHT}" height="{BAR}"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 8}" y="{y + 17}">{timeline.idle[i]:.0%}</text>')
    parts += [_bar(span, x(span.begin_s), x(span.end_s)) for span in window.spans]
    parts += _axis(window, bottom, wide)
    height = bottom + 40
    label = f"timeline of {num} stages, {timeline.num_micro_batches} micro-batches"
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _bar(span: Span, left: float, right: float) -> str:
    y = TOP + span.stage * (BAR + GAP)
    height = BAR
    if span.kind == "transfer":
        y, height = y + BAR + 2 + (LINK if span.back else 0), LINK - 1
    unit, factor = unit_of(span.end_s - span.begin_s)
    title = f"{span.words}: {(span.end_s - span.begin_s) * factor:.3g} {unit}, from {span.begin_s * 1e3:.4g} ms"
    width = max(right - left, 1.0 if span.kind == "transfer" else 0.3)
    # The ground shows through between neighbours, where there is room for it.
    drawn = width - 0.8 if width > 3 else width
    box = f'<rect x="{left:.2f}" y="{y}" width="{drawn:.2f}" height="{height}" fill="{COLOURS[span.kind]}">'
    number = ""
    if span.micro_batch is not None and span.kind != "transfer" and width > _DIGIT * len(str(span.micro_batch)) + 3:
        number = f'<text x="{left + drawn / 2:.2f}" y="{y + 17}" class="number">{span.micro_batch}</text>'
    return f"{box}<title>{escape(title)}</title></rect>{number}"


def _axis(window: Window, y: int, wide: float) -> list[str]:
    unit, factor = unit_of(window.end_s)
    parts = [f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y + 6}" y2="{y + 6}"/>']
    for tick in ticks(window.begin_s * factor, window.end_s * factor, 10):
        x = LEFT + (tick / factor - window.begin_s) * wide
        parts.append(f'<line class="axis" x1="{x:.2f}" x2="{x:.2f}" y1="{y + 6}" y2="{y + 11}"/>')
        parts.append(f'<text x="{x:.2f}" y="{y + 24}" class="middle">{tick:g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT + 8}" y="{y + 24}">{unit}</text>')
    return parts


def memory_svg(bars: Sequence[MemoryBar]) -> str:
    """A bar for each stage, its limit as a line."""
    most = max(max(bar.limit_bytes, sum(bar.parts.values())) for bar in bars)
    right = 150
    wide = (WIDTH - LEFT - right) / most
    parts = []
    for i, bar in enumerate(bars):
        y, total = i * (BAR + 12) + 6, sum(bar.parts.values())
        parts += _label(i, bar.chip, y)
        limit_x = LEFT + bar.limit_bytes * wide
        parts.append(f'<rect class="idle" x="{LEFT}" y="{y}" width="{limit_x - LEFT:.2f}" height="{BAR}"/>')
        x = float(LEFT)
        for name, colour in MEMORY_COLOURS.items():
            width, title = bar.parts[name] * wide, f"{name}: {bar.parts[name] / _GIB:.3g} GiB"
            parts.append(
                f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{BAR}" fill="{colour}">'
                f"<title>{title}</title></rect>"
            )
            x += width
        parts.append(f'<line class="limit" x1="{limit_x:.2f}" x2="{limit_x:.2f}" y1="{y - 4}" y2="{y + BAR + 4}"/>')
        full = ' class="over"' if total > bar.limit_bytes else ""
        words = f"{total / _GIB:.3g} of {bar.limit_bytes / _GIB:.3g} GiB"
        parts.append(f'<text x="{WIDTH - right + 12}" y="{y + 17}"{full}>{words}</text>')
    height = len(bars) * (BAR + 12) + 6
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="memory of each stage">{"".join(parts)}</svg>'


def _label(stage: int, chip: str, y: int) -> list[str]:
    short = chip if len(chip) <= _LABEL else chip[: _LABEL - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return [
        f'<text x="0" y="{y + 11}" class="strong">stage {stage}</text>',
        f'<text x="0" y="{y + 24}">{escape(short)}<title>{escape(chip)}</title></text>',
    ]
