"""A serving run as one HTML file that needs nothing else: throughput, times, queues, instance by instance."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from flagvega.report.overview import CHIP_COLOURS
from flagvega.report.page import STYLE, wide
from flagvega.report.plane import Plane
from flagvega.report.planning import seconds
from flagvega.report.progress import duration
from flagvega.report.svg import legend

KEPT = 240
"""Points of a curve at most twice; a long run has coarser ones."""
REFRESH_S = 10
CLIENTS = "all"
"""What clients saw, at the gateway."""
CLIENT_COLOUR = "#8b939c"


@dataclass(frozen=True)
class Row:
    """A stretch of time."""

    end: float
    """Unix s."""
    seconds: float
    values: Mapping[str, float]


@dataclass
class History:
    """What was seen, thinned as it grows: neighbours are put together."""

    rows: list[Row] = field(default_factory=list)

    def add(self, end: float, seconds: float, values: Mapping[str, float]) -> None:
        """One more stretch of time."""
        self.rows.append(Row(end, seconds, values))
        if len(self.rows) > 2 * KEPT:
            pairs = zip(self.rows[::2], self.rows[1::2], strict=False)
            odd = self.rows[-1:] if len(self.rows) % 2 else []
            self.rows = [_merge(first, second) for first, second in pairs] + odd

    def names(self, quantity: str) -> list[str]:
        """Whose curves of a quantity there are."""
        found = dict.fromkeys(name for row in self.rows for name in row.values if name.startswith(f"{quantity} "))
        return [name.removeprefix(f"{quantity} ") for name in found]

    def curve(self, quantity: str, whose: str) -> list[tuple[float, float]]:
        """(unix s, value) in order."""
        name = f"{quantity} {whose}"
        return [(row.end, row.values[name]) for row in self.rows if name in row.values]


def _merge(first: Row, second: Row) -> Row:
    """Means by time; of a 99 % quantile the larger one, since none shall get lost."""
    total = first.seconds + second.seconds
    values = dict(first.values)
    for name, value in second.values.items():
        if name not in values:
            values[name] = value
        elif name.split(" ")[0].endswith("p99"):
            values[name] = max(values[name], value)
        else:
            values[name] = (values[name] * first.seconds + value * second.seconds) / (total or 1)
    return Row(second.end, total, values)


_QUANTITIES = ("output_tokens_per_s", "prompt_tokens_per_s", "requests_per_s", "running", "waiting", "kv_share")
_TIMES = ("first_token_s", "per_token_s")


def instance_values(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """What engines said of themselves, for a :class:`History`: ``quantity instance`` -> value."""
    found: dict[str, float] = {}
    for row in rows:
        found |= _values(row, str(row["id"]))
    return found


def gateway_values(row: Mapping[str, Any]) -> dict[str, float]:
    """What a gateway saw, for a :class:`History`."""
    return _values(row, CLIENTS) | {f"in_flight {CLIENTS}": row["in_flight"]}


def _values(row: Mapping[str, Any], whose: str) -> dict[str, float]:
    found = {f"{name} {whose}": row[name] for name in _QUANTITIES if row.get(name) is not None}
    for name in _TIMES:
        for quantile, value in (row.get(name) or {}).items():
            found[f"{name}_{quantile} {whose}"] = value
    return found


@dataclass(frozen=True)
class InstanceRow:
    """An instance and its last record."""

    id: int
    service: str
    chip: str
    role: str
    url: str
    record: Mapping[str, Any]


@dataclass(frozen=True)
class ServingPage:
    """All that the page shows."""

    name: str
    state: str
    """``starting``, ``serving``, or how it ended."""
    url: str | None
    """Of the gateway, where there is one."""
    began: float
    written: float
    instances: Sequence[InstanceRow]
    engines: History
    clients: History
    num_refused: int
    events: Sequence[tuple[float, str, str]]
    """(unix s, who, what)."""

    @property
    def is_running(self) -> bool:
        """Whether it goes on."""
        return self.state in ("starting", "serving")


def serving_page(page: ServingPage) -> str:
    """The page."""
    colours = {str(each.id): CHIP_COLOURS[i % len(CHIP_COLOURS)] for i, each in enumerate(page.instances)}
    names = {f"instance {each.id}" + (f" on {each.chip}" if each.chip else ""): colours[str(each.id)]
             for each in page.instances}  # fmt: skip
    names |= {"clients, at the gateway": CLIENT_COLOUR} if page.url else {}
    facts = "".join(f"<li>{escape(fact)}</li>" for fact in _facts(page))
    body = [f"<h1>{escape(f'serving {page.name}')}</h1>", _tiles(page), f"<ul>{facts}</ul>"]
    if page.engines.rows:
        body += [
            legend({escape(name): colour for name, colour in names.items()}, {}),
            '<p class="faint">Times: the median, and 99 % in thin lines. Queues: what runs, and in thin lines what '
            "waits inside the engine. Point at a line for its name.</p>",
            f'<div class="pair">{"".join(_figures(page, colours))}</div>',
        ]
    body += ["<h2>Instances</h2>", _instances(page), "<h2>What happened</h2>", _events(page)]
    refresh = f'<meta http-equiv="refresh" content="{REFRESH_S}">' if page.is_running else ""
    head = f'<meta charset="utf-8"><title>serving {escape(page.name)}</title>{refresh}<style>{STYLE}{_STYLE}</style>'
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    lines = ["<!DOCTYPE html>", f'<html lang="en"><head>{head}{view}</head>', "<body>", *body, "</body></html>", ""]
    return "\n".join(lines)


_STYLE = """
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(480px, 1fr)); gap: .2rem 2rem; }
.pair svg { min-width: 0; } polyline { fill: none; stroke-width: 2; } polyline.thin { stroke-width: 1; opacity: .75; }
.tiles { display: flex; flex-wrap: wrap; gap: .6rem; margin: .8rem 0; }
.tiles div { border: 1px solid var(--line); border-radius: 6px; padding: .5rem .9rem; min-width: 7.5rem; }
.tiles b { display: block; font-size: 1.45rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.tiles span { font-size: .82rem; color: var(--faint); }
td.long { white-space: normal; min-width: 16rem; }
"""


def _facts(page: ServingPage) -> list[str]:
    took = duration(page.written - page.began)
    ready = sum(each.record["state"] == "ready" for each in page.instances)
    facts = [f"{page.state}, {took} since its start; {ready} of {len(page.instances)} instances ready"
             if page.is_running else f"{page.state} after {took}"]  # fmt: skip
    facts += [f"one endpoint in front: {page.url}/v1"] if page.url else []
    totals = [each.record["total"] for each in page.instances if each.record.get("total")]
    if totals:
        tokens, read = (sum(total[name] for total in totals) for name in ("num_output_tokens", "num_prompt_tokens"))
        requests = sum(total["num_requests"] for total in totals)
        facts.append(f"{requests:,} requests answered, {tokens:,} tokens written, {read:,} tokens of prompts read")
    refused = "1 request" if page.num_refused == 1 else f"{page.num_refused:,} requests"
    facts += [f"{refused} refused by the gateway"] if page.num_refused else []
    return [*facts, time.strftime("written %F %T", time.localtime(page.written))]


def _tiles(page: ServingPage) -> str:
    """The few numbers that are looked at first: how it does now, as clients see it where there is a gateway."""
    if not page.is_running or not page.engines.rows:
        return ""
    engines = page.engines.rows[-1].values
    ready = sum(each.record["state"] == "ready" for each in page.instances)
    tiles = [(f"{ready} of {len(page.instances)}", "instances ready")]
    for quantity, name in (("output_tokens_per_s", "tokens/s written"), ("requests_per_s", "requests/s answered"),
                           ("running", "requests at work")):  # fmt: skip
        found = [value for key, value in engines.items() if key.startswith(f"{quantity} ")]
        tiles += [(f"{sum(found):,.3g}", name)] if found else []
    seen = (page.clients if page.clients.rows else page.engines).rows[-1].values
    for quantity, name in (("first_token_s", "to the first token"), ("per_token_s", "per token after it")):
        medians, tails = ([value for key, value in seen.items() if key.startswith(f"{quantity}_{quantile} ")]
                          for quantile in ("p50", "p99"))  # fmt: skip
        if medians and tails:
            tiles.append((seconds(max(medians)), f"{name} (99 %: {seconds(max(tails))})"))
    inside = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in tiles)
    return f'<div class="tiles">{inside}</div>'


@dataclass(frozen=True)
class _Line:
    """A curve in a picture."""

    name: str
    colour: str
    points: Sequence[tuple[float, float]]
    is_thin: bool = False


def _figures(page: ServingPage, colours: Mapping[str, str]) -> list[str]:
    """One for each quantity that was seen."""
    pictures = (
        ("Tokens written", "tokens per second", ("output_tokens_per_s",), 1.0),
        ("Tokens of prompts read", "tokens per second", ("prompt_tokens_per_s",), 1.0),
        ("Requests", "requests per second", ("requests_per_s",), 1.0),
        ("Queue", "requests", ("running", "waiting", "in_flight"), 1.0),
        ("Time to the first token", "milliseconds", ("first_token_s_p50", "first_token_s_p99"), 1e3),
        ("Time per token after it", "milliseconds", ("per_token_s_p50", "per_token_s_p99"), 1e3),
        ("KV cache in use", "% of it", ("kv_share",), 100.0),
    )
    found = []
    for title, unit, quantities, scale in pictures:
        lines = [
            _Line(
                f"{_who(whose)}: {_WORDS.get(quantity, title.lower())}", colours.get(whose, CLIENT_COLOUR),
                [(at, value * scale) for at, value in history.curve(quantity, whose)],
                quantity.endswith("p99") or quantity == "waiting",
            )
            for history in (page.engines, page.clients)
            for quantity in quantities
            for whose in history.names(quantity)
        ]  # fmt: skip
        if lines:
            found.append(f"<div><h2>{title}</h2>{_chart(lines, unit, page.began, page.written)}</div>")
    return found


_WORDS = {"running": "running", "waiting": "waiting", "in_flight": "in flight", "first_token_s_p50": "median",
          "first_token_s_p99": "99 %", "per_token_s_p50": "median", "per_token_s_p99": "99 %"}  # fmt: skip


def _who(whose: str) -> str:
    return "clients" if whose == CLIENTS else f"instance {whose}"


def _chart(lines: Sequence[_Line], unit: str, began: float, ended: float) -> str:
    span_s = max(ended - began, 1.0)
    size, word = next((size, word) for most, size, word in _SPANS if span_s <= most)
    top = max(value for line in lines for _, value in line.points) * 1.06 or 1.0
    plane = Plane((0.0, 0.0), (span_s / size, top), (f"{word} since the start", unit), height=240)
    parts = []
    for line in lines:
        points = " ".join(f"{plane.x((at - began) / size):.1f},{plane.y(value):.1f}" for at, value in line.points)
        last = line.points[-1][1]
        title = escape(f"{line.name}, last {last:.4g} {unit}")
        thin = ' class="thin"' if line.is_thin else ""
        parts.append(f'<polyline{thin} stroke="{line.colour}" points="{points}"><title>{title}</title></polyline>')
    return plane.picture(parts)


_SPANS = ((300.0, 1.0, "seconds"), (3 * 3600.0, 60.0, "minutes"), (72 * 3600.0, 3600.0, "hours"),
          (float("inf"), 86400.0, "days"))  # fmt: skip
"""(up to so many s, seconds of its unit, the unit)."""


def _instances(page: ServingPage) -> str:
    has_roles = any(each.role != "both" for each in page.instances)
    head = ["instance", "service", "chip", *(["role"] if has_roles else []), "state", "requests", "tokens read",
            "tokens written", "tokens/s", "first token", "99 %", "per token", "99 %", "found in cache",
            "restarts", "address"]  # fmt: skip
    body = []
    for each in page.instances:
        record, total = each.record, each.record.get("total") or {}
        counts = [f"{total.get(f'num_{name}', 0):,}" for name in ("requests", "prompt_tokens", "output_tokens")]
        times = [
            seconds(total[name][quantile]) if total.get(name) else "-" for name in _TIMES for quantile in ("p50", "p99")
        ]
        share = total.get("prefix_share")
        state = f"{record['state']}: {record.get('trouble', '')}".removesuffix(": ")
        body.append([
            str(each.id), each.service, each.chip, *([each.role] if has_roles else []), state, *counts,
            f"{total.get('output_tokens_per_s', 0.0):,.1f}", *times, "-" if share is None else f"{share:.0%}",
            str(record.get("restarts", 0)), f"{each.url}/v1",
        ])  # fmt: skip
    note = '<p class="faint">Of the whole run, as the engines count; their rates are means since the start.</p>'
    return note + _table(head, body)


def _events(page: ServingPage) -> str:
    rows = [(time.strftime("%F %T", time.localtime(at)), who, what) for at, who, what in page.events]
    return _table(("when", "who", "what"), rows)


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    lines = [
        "<tr>" + "".join(f"<td{_LONG if len(cell) > 80 else ''}>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    ]
    return wide(f"<table><tr>{head}</tr>{''.join(lines)}</table>")


_LONG = ' class="long"'
