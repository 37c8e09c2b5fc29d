"""The timeline as a PNG, by matplotlib (the ``report`` extra)."""

from __future__ import annotations

from importlib.util import find_spec
from io import BytesIO
from typing import TYPE_CHECKING

from flagvega.report.timeline import COLOURS, Timeline, Window, picture_windows, unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_HEIGHT_IN = 40.0
IDLE = "#e9ecef"
_BAR, _LINK = 0.66, 0.11
"""Heights of a stage and of each direction of the boundary behind it; stages are 1 apart."""


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def timeline_png(timeline: Timeline, title: str) -> bytes:
    """The picture; matplotlib is imported here, for it takes a second."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    shown = picture_windows(timeline)
    height = min(1.5 + len(shown) * (0.5 + 0.46 * len(timeline.lanes)), MAX_HEIGHT_IN)
    figure = Figure(figsize=(11, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    # Titles may hold any character: none of them is markup.
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", parse_math=False)
    for i, window in enumerate(shown):
        _draw(figure.add_subplot(len(shown), 1, i + 1), timeline, window)
    handles = [Patch(color=colour, label=kind) for kind, colour in (*COLOURS.items(), ("idle", IDLE))]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False)
    file = BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _draw(axes: Axes, timeline: Timeline, window: Window) -> None:
    unit, factor = unit_of(window.end_s)
    num, begin = len(timeline.lanes), window.begin_s * factor
    length = window.end_s * factor - begin
    axes.barh(range(num), [length] * num, _BAR, left=begin, color=IDLE)
    for kind, colour in COLOURS.items():
        spans = [span for span in window.spans if span.kind == kind]
        if not spans:
            continue
        is_link = kind == "transfer"
        rows = [span.stage + (0.5 + (0.5 if span.back else -0.5) * _LINK * 1.2 if is_link else 0.0) for span in spans]
        widths = [(span.end_s - span.begin_s) * factor for span in spans]
        height, edge, edge_width = (_LINK, colour, 0.8) if is_link else (_BAR, "white", 0.4)
        begins = [span.begin_s * factor for span in spans]
        axes.barh(rows, widths, height, left=begins, color=colour, edgecolor=edge, linewidth=edge_width)
    _number(axes, window, factor, length)
    axes.set_xlim(begin, begin + length)
    axes.set_ylim(num - (0.25 if timeline.is_ring else 0.5), -0.5)
    names = [f"stage {i}\n{lane.chip}\n{lane.note}".rstrip() for i, lane in enumerate(timeline.lanes)]
    axes.set_yticks(range(num), names, fontsize=7.5, parse_math=False)
    axes.set_xlabel(f"time in {unit}", fontsize=9)
    axes.tick_params(labelsize=8, length=3)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    share = axes.secondary_yaxis("right")
    share.set_yticks(range(num), [f"{idle:.0%} idle" for idle in timeline.idle], fontsize=8)
    share.tick_params(length=0)
    share.spines["right"].set_visible(False)


def _number(axes: Axes, window: Window, factor: float, length: float) -> None:
    """Micro-batches on the bars that have room for them."""
    for span in window.spans:
        if span.micro_batch is None or span.kind == "transfer":
            continue
        width = (span.end_s - span.begin_s) * factor
        if width > 0.009 * length * len(str(span.micro_batch)):
            middle = span.begin_s * factor + width / 2
            axes.text(middle, span.stage, str(span.micro_batch), ha="center", va="center", fontsize=7, clip_on=True)
