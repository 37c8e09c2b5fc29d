"""Tables of what instances can do, and a line for each measurement as it comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from flagvega.report.planning import seconds
from flagvega.serve.advice import Gain
from flagvega.serve.curve import ServeProfile, curve_of
from flagvega.serve.fleets import Outlook, Problem
from flagvega.serve.traffic import spread


def answer_line(answer: Mapping[str, Any]) -> str:
    """One measurement in words; empty where there is nothing to tell."""
    if answer["what"] == "limits":
        found = {"prompt and answer": answer["max_tokens"], "cache": answer["cache_tokens"]}
        return ", ".join(f"{name} {number:,} tokens" for name, number in found.items() if number)
    if answer["what"] == "reading":
        return f"prompt of {answer['number']:>5} tokens: first token after {seconds(answer['first_token_s'])}"
    if answer["what"] == "handover":
        return f"prompt of {answer['number']:>5} tokens handed over: a token {seconds(answer['first_token_s'])} later"
    if answer["what"] == "level":
        rate = f"{answer['tokens_per_s']:,.1f} tokens/s in all"
        return f"{answer['number']:>4} at once: a token every {seconds(answer['step_s'])}, {rate}"
    return ""


def levels_table(profile: ServeProfile) -> Table:
    """A row for each number of sequences at once."""
    names = ("service", "instance", "at once", "between tokens", "tokens/s", "first token")
    table = Table(*names, title="sequences at once", title_justify="left", box=SIMPLE_HEAD)
    for row in profile.instances:
        for level in row.levels:
            table.add_row(
                row.service, row.name, str(level.sequences), seconds(level.step_s), f"{level.tokens_per_s:,.1f}",
                seconds(level.first_token_s),
            )  # fmt: skip
        table.add_section()
    return table


def readings_table(profile: ServeProfile) -> Table:
    """A row for each instance: what reading prompts takes."""
    table = Table("service", "instance", "prompts", "first token of a short one", "prompt and answer", "cache",
                  title="prompts", title_justify="left", box=SIMPLE_HEAD)  # fmt: skip
    for row in profile.instances:
        slope = curve_of(row).prompt_token_s
        rate = f"{1 / slope:,.0f} tokens/s" if slope else "too fast to tell"
        table.add_row(row.service, row.name, rate, seconds(row.readings[0].first_token_s), _tokens(row.max_tokens),
                      _tokens(row.cache_tokens))  # fmt: skip
    return table


def _tokens(number: int | None) -> str:
    return f"{number:,} tokens" if number else "unknown"


def fleet_table(outlook: Outlook, problem: Problem) -> Table:
    """A row for each kind of instance."""
    objective = {"goodput": "most goodput", "cost": "least price"}[problem.objective]
    title = f"instances for {problem.rate_per_s:g} requests/s: {objective}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in ("instances", "on", "at once, at most", "at once, mean", "requests", "first token p50, p99",
                 "between tokens p50, p99"):  # fmt: skip
        table.add_column(name, justify="left" if name == "on" else "right")
    begin = 0
    for kind, number in outlook.fleet:
        places = range(begin, begin + number)
        begin += number
        shares = [outlook.forecast.shares[i] for i in places]
        own = [answer for place, answer in zip(outlook.forecast.places, outlook.forecast.answers, strict=True)
               if place in places]  # fmt: skip
        first, between = (spread([getattr(each, name) for each in own]) for name in ("first_token_s", "per_token_s"))
        table.add_row(
            str(number), kind.name, str(kind.slots), f"{sum(share.sequences for share in shares) / number:.1f}",
            f"{sum(share.num_requests for share in shares) / len(outlook.forecast.places):.0%}",
            *([f"{seconds(first.p50)}, {seconds(first.p99)}", f"{seconds(between.p50)}, {seconds(between.p99)}"]
              if own else ["", ""]),
        )  # fmt: skip
    return table


def gains_table(gains: Sequence[Gain], rate_per_s: float) -> Table:
    """What one more chip of each kind would bring."""
    table = Table("one more", "holds the targets up to", "gain", title="what more would bring", title_justify="left",
                  box=SIMPLE_HEAD)  # fmt: skip
    for gain in gains:
        share = f"{gain.rate_per_s / rate_per_s - 1:+.0%}" if rate_per_s else ""
        table.add_row(gain.name, f"{gain.rate_per_s:.3g} requests/s", share)
    return table
