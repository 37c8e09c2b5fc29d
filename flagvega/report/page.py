"""A plan as one HTML file that needs nothing else: no script, no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rich.table import Table

from flagvega.report.svg import MEMORY_COLOURS, MemoryBar, legend, memory_svg, timeline_legend, timeline_svg
from flagvega.report.timeline import Timeline, picture_windows

STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --text: #1c2126; --faint: #5f6872; --line: #d5dade;
  --idle: #e9ecef; --over: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ground: #15181c; --text: #e4e7ea; --faint: #9aa4ae; --line: #3a4149;
  --idle: #272c32; --over: #ff8a80; } }
body { background: var(--ground); color: var(--text); font: 15px/1.5 system-ui, sans-serif; max-width: 1180px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .6rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .4rem; }
ul { margin: .3rem 0; padding-left: 1.2rem; } p { margin: .4rem 0; } .faint { color: var(--faint); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--faint); } .right { text-align: right; }
svg { width: 100%; min-width: 760px; height: auto; display: block; margin: .6rem 0; }
svg text { fill: var(--faint); font: 11.5px system-ui, sans-serif; } svg .strong { fill: var(--text); }
svg .middle { text-anchor: middle; } svg .number { fill: #14181c; text-anchor: middle; font-size: 10.5px;
  pointer-events: none; }
svg .over { fill: var(--over); font-weight: 600; }
.idle { fill: var(--idle); background: var(--idle); } .axis { stroke: var(--line); }
.limit { stroke: var(--text); stroke-width: 2; background: var(--text); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .87rem; color: var(--faint); }
.legend i { display: inline-block; width: .85rem; height: .85rem; margin-right: .35rem; vertical-align: -2px;
  border-radius: 2px; } .legend i.limit { width: 2px; }
"""


def plan_page(title: str, facts: Sequence[str], timeline: Timeline, bars: Sequence[MemoryBar],
              tables: Sequence[Table], overview: Sequence[tuple[str, str]] = ()) -> str:  # fmt: skip
    """The page; ``facts`` are lines of plain text, ``overview`` headings with pictures that come first."""
    shown = picture_windows(timeline)
    cut = "" if len(shown) == 1 else " Only its beginning and its end are shown."
    note = (
        f"One step of {timeline.num_micro_batches} micro-batches, as the simulation runs it; numbers are micro-batches."
        f"{cut} Thin bars are transfers: above, to the next stage; below, gradients back. Point at a bar for its times."
    )
    body = [
        f"<h1>{escape(title)}</h1>",
        "<ul>" + "".join(f"<li>{escape(fact)}</li>" for fact in facts) + "</ul>",
        *(f"<h2>{escape(name)}</h2>{picture}" for name, picture in overview),
        "<h2>Timeline</h2>",
        f'<p class="faint">{note}</p>',
        timeline_legend(),
        wide(timeline_svg(timeline)),
        "<h2>Memory of a device of each stage</h2>",
        legend(MEMORY_COLOURS, {"free": "idle", "limit": "limit"}),
        wide(memory_svg(bars)),
        *(_table(table, "stages" if table.title == title else str(table.title)) for table in tables),
    ]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    lines = ["<!DOCTYPE html>", f'<html lang="en"><head>{head}{view}</head>', "<body>", *body, "</body></html>", ""]
    return "\n".join(lines)


def wide(content: str) -> str:
    """Scrolls to the side where the window is narrow."""
    return f'<div class="wide">{content}</div>'


def _table(table: Table, name: str) -> str:
    """A table of the terminal, as HTML."""
    styles = [' class="right"' if column.justify == "right" else "" for column in table.columns]
    names = [str(column.header) for column in table.columns]
    head = "".join(f"<th{style}>{escape(name)}</th>" for name, style in zip(names, styles, strict=True))
    rows = [
        "".join(f"<td{style}>{escape(str(cell))}</td>" for cell, style in zip(row, styles, strict=True))
        for row in zip(*(column.cells for column in table.columns), strict=True)
    ]
    body = "".join(f"<tr>{row}</tr>" for row in (head, *rows))
    return f"<h2>{escape(name[:1].upper() + name[1:])}</h2>{wide(f'<table>{body}</table>')}"
