"""A search as one HTML file that needs nothing else: trials, predictions, memory, dimensions, and the best YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from flagvega.report.page import STYLE
from flagvega.report.plane import Plane
from flagvega.report.planning import seconds
from flagvega.report.svg import legend

COLOURS: Mapping[str, str] = {"measured": "#4e86d8", "clearly slower": "#8b939c", "best": "#2f9e8f"}
DEAD = "#c9566d"


@dataclass(frozen=True)
class TrialRow:
    """A trial as the page shows it."""

    number: int
    status: str
    reason: str
    values: Mapping[str, object]
    time_s: float | None
    half_width_s: float | None
    tokens_per_s: float | None
    predicted_s: float | None
    corrected_s: float | None
    memory_share: float | None
    is_best: bool = False
    facts: Mapping[str, object] = field(default_factory=dict)
    """Whatever else was measured, by name: columns of the table."""

    @property
    def words(self) -> str:
        """The choices, for a title."""
        return ", ".join(f"{name} {value}" for name, value in self.values.items())

    @property
    def colour(self) -> str:
        """Of its dot."""
        return COLOURS["best" if self.is_best else "clearly slower" if self.status == "worse" else "measured"]


@dataclass(frozen=True)
class Effect:
    """What one value of a dimension came to."""

    dimension: str
    value: str
    num_trials: int
    best_s: float
    mean_s: float


def tuning_page(title: str, facts: Sequence[str], rows: Sequence[TrialRow], counts: Sequence[tuple[str, str, str]],
                pruned: Sequence[tuple[str, str]], best_yaml: str, unit: str = "step") -> str:  # fmt: skip
    """The page; ``facts`` are lines of plain text, ``counts`` (rule, candidates left, example).

    ``unit`` is whose seconds a trial measures.
    """
    good = [row for row in rows if row.time_s is not None]
    body = [f"<h1>{escape(title)}</h1>", "<ul>", *(f"<li>{escape(fact)}</li>" for fact in facts), "</ul>"]
    if good:
        body += [
            legend(COLOURS, {}),
            '<div class="pair">',
            _figure("Best so far, trial by trial", progress_svg(rows, unit)),
            _figure("Predicted against measured", prediction_svg(good, unit)),
            _figure("Throughput against memory", pareto_svg(good)),
            _figure("Effect of each dimension", effects_table(effects(good))),
            "</div>",
        ]
    body += ["<h2>Trials</h2>", trials_table(rows, unit)]
    if pruned:
        cells = [(escape(what), escape(why)) for what, why in pruned]
        body += ["<h2>Not tried, for what trials had shown</h2>", _table(("candidate", "reason"), cells)]
    if counts:
        body += ["<h2>Candidates</h2>", _table(("after rule", "left", "example of what went"), [
            (escape(name), escape(left), escape(example)) for name, left, example in counts
        ])]  # fmt: skip
    if best_yaml:
        body += ["<h2>The best, to copy</h2>", f'<div class="wide"><pre>{escape(best_yaml)}</pre></div>']
    style = STYLE + _STYLE
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{style}</style>'
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    lines = ["<!DOCTYPE html>", f'<html lang="en"><head>{head}{view}</head>', "<body>", *body, "</body></html>", ""]
    return "\n".join(lines)


_STYLE = """
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(480px, 1fr)); gap: .2rem 2rem; }
.pair svg { min-width: 0; } .dead { color: var(--over); } .dots { fill: none; stroke: var(--faint);
  stroke-dasharray: 4 4; } .front { fill: none; stroke: #2f9e8f; stroke-width: 1.5; }
.won td { font-weight: 600; } pre { font-size: .82rem; } td.long { white-space: normal; min-width: 16rem; }
"""


def _figure(title: str, inside: str) -> str:
    return f"<div><h2>{escape(title)}</h2>{inside}</div>"


def _dot(plane: Plane, x: float, y: float, row: TrialRow, note: str) -> str:
    title = escape(f"trial {row.number}: {note}; {row.words}")
    return (
        f'<circle cx="{plane.x(x):.1f}" cy="{plane.y(y):.1f}" r="{6 if row.is_best else 4.5}" fill="{row.colour}">'
        f"<title>{title}</title></circle>"
    )


def progress_svg(rows: Sequence[TrialRow], unit: str) -> str:
    """Seconds of each trial, and of the best until then; crosses are trials that died."""
    good = [row.time_s for row in rows if row.time_s is not None]
    last = max(row.number for row in rows)
    plane = Plane((0.5, 0.0), (last + 0.5, max(good) * 1.05), ("trial", f"seconds a {unit}"))
    parts, best, path = [], None, []
    for row in sorted(rows, key=lambda row: row.number):
        if row.time_s is None:
            x = plane.x(row.number)
            y = plane.bottom - 9
            title = escape(f"trial {row.number}: {row.status}: {row.reason}")
            parts.append(
                f'<path d="M{x - 4:.1f} {y - 4}l8 8m0 -8l-8 8" stroke="{DEAD}" stroke-width="2"><title>{title}</title>'
                "</path>"
            )
            continue
        parts.append(_dot(plane, row.number, row.time_s, row, seconds(row.time_s)))
        if row.status == "ok":
            best = row.time_s if best is None else min(best, row.time_s)
        if best is not None:
            path.append(f"{plane.x(row.number):.1f},{plane.y(best):.1f}")
    return plane.picture([f'<polyline class="front" points="{" ".join(path)}"/>', *parts])


def prediction_svg(good: Sequence[TrialRow], unit: str) -> str:
    """What was expected when a trial was chosen, over what was measured; on the dotted line both are equal."""
    pairs = [(row.time_s or 0.0, row.corrected_s or 0.0, row) for row in good if row.corrected_s is not None]
    top = max(max(x, y) for x, y, _ in pairs) * 1.08
    plane = Plane((0.0, 0.0), (top, top), (f"measured seconds a {unit}", f"expected seconds a {unit}"))
    line = f'<line class="dots" x1="{plane.x(0)}" y1="{plane.y(0)}" x2="{plane.x(top):.1f}" y2="{plane.y(top):.1f}"/>'
    return plane.picture([line, *(
        _dot(plane, x, y, row, f"expected {seconds(y)}, measured {seconds(x)}") for x, y, row in pairs
    )])  # fmt: skip


def pareto_svg(good: Sequence[TrialRow]) -> str:
    """Throughput over memory; the line joins the trials that no other beats in both."""
    known = [row for row in good if row.memory_share is not None and row.tokens_per_s]
    if not known:
        return '<p class="faint">Nothing is known of the memory of these trials.</p>'
    top = max(row.tokens_per_s or 0.0 for row in known) * 1.08
    plane = Plane(
        (0.0, 0.0), (max(100 * (row.memory_share or 0.0) for row in known) * 1.08, top),
        ("memory of the fullest device, % of its limit", "tokens per second"),
    )  # fmt: skip
    front = pareto(known)
    points = " ".join(
        f"{plane.x(100 * (row.memory_share or 0)):.1f},{plane.y(row.tokens_per_s or 0):.1f}" for row in front
    )
    dots = [
        _dot(plane, 100 * (row.memory_share or 0), row.tokens_per_s or 0, row, f"{row.tokens_per_s:,.0f} tokens/s")
        for row in known
    ]
    return plane.picture([f'<polyline class="front" points="{points}"/>', *dots])


def pareto(rows: Sequence[TrialRow]) -> list[TrialRow]:
    """Those that no other beats in memory and in throughput, least memory first."""
    front: list[TrialRow] = []
    for row in sorted(rows, key=lambda row: (row.memory_share or 0.0, -(row.tokens_per_s or 0.0))):
        if not front or (row.tokens_per_s or 0.0) > (front[-1].tokens_per_s or 0.0):
            front.append(row)
    return front


def effects(good: Sequence[TrialRow]) -> list[Effect]:
    """The best and the mean of the trials with each value of each dimension that has several."""
    names = list(dict.fromkeys(name for row in good for name in row.values))
    found = []
    for name in names:
        groups: dict[str, list[float]] = {}
        for row in good:
            groups.setdefault(str(row.values.get(name, "")), []).append(row.time_s or 0.0)
        if 1 < len(groups) <= 12 or (len(groups) > 1 and len(groups) < len(good)):
            ranked = sorted(groups.items(), key=lambda group: min(group[1]))
            found += [
                Effect(name, value, len(times), min(times), sum(times) / len(times)) for value, times in ranked[:6]
            ]
    return found


def effects_table(found: Sequence[Effect]) -> str:
    """A row for each value, a bar for its best time."""
    if not found:
        return '<p class="faint">No dimension had two values among the trials.</p>'
    least = min(effect.best_s for effect in found)
    rows, last = [], ""
    for effect in found:
        width = 64 * least / effect.best_s
        box = f'<rect width="{width:.0f}" height="10" fill="{COLOURS["measured"]}"/>'
        bar = f'<svg viewBox="0 0 64 10" style="width:64px;height:10px;margin:0">{box}</svg>'
        name = effect.dimension if effect.dimension != last else ""
        last = effect.dimension
        rows.append((escape(name), bar, seconds(effect.best_s), str(effect.num_trials), escape(effect.value)))
    return _table(("dimension", "speed", "best", "trials", "value"), rows)


def trials_table(rows: Sequence[TrialRow], unit: str) -> str:
    """All trials, the fastest first, then those that measured nothing."""
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    varied = [name for name in names if len({str(row.values.get(name, "")) for row in rows}) > 1]
    constant = [name for name in names if name not in varied]
    more = list(dict.fromkeys(name for row in rows for name in row.facts))
    head = ("trial", unit, "tokens/s", *more, "expected", "error", "planner alone", "memory", *varied, "outcome")
    body = []
    for row in sorted(rows, key=lambda row: (row.time_s is None, row.time_s or 0.0, row.number)):
        step = (
            f"{seconds(row.time_s)} \N{PLUS-MINUS SIGN} {(row.half_width_s or 0) / row.time_s:.1%}"
            if row.time_s
            else "-"
        )
        error = f"{(row.corrected_s or 0) / row.time_s - 1:+.0%}" if row.time_s and row.predicted_s else "-"
        outcome = row.status + (f": {row.reason}" if row.reason else "")
        style = ' class="dead"' if row.time_s is None else ""
        body.append((
            str(row.number), step, f"{row.tokens_per_s:,.0f}" if row.tokens_per_s else "-",
            *(escape(str(row.facts.get(name, "-"))) for name in more),
            seconds(row.corrected_s) if row.corrected_s is not None and row.predicted_s else "-", error,
            seconds(row.predicted_s) if row.predicted_s else "-",
            f"{row.memory_share:.0%}" if row.memory_share is not None else "-",
            *(escape(str(row.values.get(name, ""))) for name in varied),
            f"<span{style}>{escape(outcome[:160])}</span>",
        ))  # fmt: skip
    note = ", ".join(f"{name} {rows[0].values.get(name)}" for name in constant) if rows else ""
    same = f'<p class="faint">Alike in all: {escape(note)}.</p>' if note else ""
    return same + _table(head, body, won=0 if any(row.is_best for row in rows) else None)


def _table(names: Sequence[str], rows: Sequence[Sequence[str]], won: int | None = None) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    lines = []
    for i, row in enumerate(rows):
        style = ' class="won"' if i == won else ""
        lines.append(f"<tr{style}>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>")
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div>'
