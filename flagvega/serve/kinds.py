"""Forms of instances, each with the limit of requests at once at which it takes most of a traffic by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import Final

from flagvega.config.spec import Role
from flagvega.serve.batching import Member
from flagvega.serve.curve import Curve, Passing, Row, curve_of
from flagvega.serve.forecast import AT_ONCE, meets_targets
from flagvega.serve.gateway.routes import HANDED_TOKENS
from flagvega.serve.traffic import Targets, Traffic, draw, fixed

PATIENCE: Final = 0.6
"""Of the target for the first token: the gateway refuses what it expects to wait longer, for expectations err."""
SAMPLE: Final = 400
"""Requests behind a first look at a form."""
REQUESTS: Final = 1200
"""Requests behind a forecast of a set, at least."""
SPANS: Final = 12
"""Times that a typical answer takes, for which requests are to come: the beginning of a forecast is idle."""
MOST_REQUESTS: Final = 12_000
HALVINGS: Final = 7
"""Of the interval in which a highest rate is looked for."""
WORTH: Final = 0.005
"""Share that is given up for fewer devices, or fewer requests at once."""


@dataclass(frozen=True, eq=False)
class Kind:
    """An instance as it may be run: a measured form with a limit of requests at once."""

    row: Row
    slots: int
    rate_per_s: float
    """The highest rate at which it meets the targets alone; of its part of a request, where it has a role."""
    price_per_hour: float
    bound: str
    """What keeps the slots from being more, in words."""
    role: Role = "both"

    @cached_property
    def curve(self) -> Curve:
        """Its steps."""
        return curve_of(self.row)

    @property
    def member(self) -> Member:
        """As a forecast takes it."""
        return Member(self.curve, self.slots, self.role)

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return " ".join([self.row.name, *([WORDS[self.role]] if self.role != "both" else [])])


WORDS: Final = {"prefill": "reads", "decode": "writes"}
"""What an instance with a role does."""


def patience_of(targets: Targets, share: float = PATIENCE) -> float:
    """The gateway's limit for a first token, as a share of the target."""
    return inf if targets.first_token_s is None else round(share * targets.first_token_s, 4)


def find_kind(row: Row, traffic: Traffic, targets: Targets, price_per_hour: float, role: Role = "both") -> Kind | None:
    """The form with the limit of requests at once at which it takes most; None where it never meets the targets."""
    curve = curve_of(row)
    most = row.levels[-1].sequences
    if role == "prefill":
        traffic = replace(traffic, output_tokens=fixed(1))
    if row.cache_tokens is not None:
        most = max(1, min(most, round(row.cache_tokens / (traffic.input_tokens.mean + traffic.output_tokens.mean))))
    if role == "decode":
        traffic = replace(traffic, input_tokens=fixed(round(HANDED_TOKENS)))
    tried = sorted(
        {max(1, round(share * most)) for share in (1, 0.75, 0.5, 0.375, 0.25, 0.125)}
        | {1, *_fitting(curve, most, targets)}
    )
    best: Kind | None = None
    for slots in reversed(tried):
        ceiling, least = _ceiling(curve, slots, traffic), best.rate_per_s * (1 + WORTH) if best else 0.0
        if ceiling <= least:
            continue
        rate = highest_rate([Member(curve, slots)], traffic, targets, ceiling, SAMPLE, above=least)
        if rate > least:
            best = Kind(row, slots, rate, price_per_hour, _bound(slots, row, most), role)
    return best


def _fitting(curve: Curve, most: int, targets: Targets) -> list[int]:
    """The most sequences whose steps alone keep the target between tokens, and some fewer: prompts come in between."""
    if targets.per_token_s is None:
        return []
    fit = max((n for n in range(1, most + 1) if curve.step_s(n) <= targets.per_token_s), default=0)
    return sorted({max(1, round(share * fit)) for share in (1, 0.9, 0.8, 0.65)}) if fit else []


def _bound(slots: int, row: Row, most: int) -> str:
    if slots < most:
        return "more at once would be too slow"
    return (
        "more were not measured, or gained nothing" if most == row.levels[-1].sequences else "its cache holds no more"
    )


def _ceiling(curve: Curve, slots: int, traffic: Traffic) -> float:
    """Requests a second beyond which no instance goes: slots always full, prompts read in between."""
    output, given = traffic.output_tokens.mean, traffic.input_tokens.mean
    return 1 / (given * curve.prompt_token_s + output * curve.step_s(slots) / slots)


def highest_rate(
    members: Sequence[Member], traffic: Traffic, targets: Targets, start: float, least: int = REQUESTS,
    passing: Passing = AT_ONCE, above: float = 0.0,
) -> float:  # fmt: skip
    """The most requests a second of which so many as the targets say meet them; 0 where they never do.

    ``start`` is a rate above which it is not, ``least`` a number of requests to look at. What is not ``above`` a rate
    is not looked for: 0.
    """
    number = sample_size(members, traffic, start, least)
    base = draw(replace(traffic, rate_per_s=1.0, num_requests=number))

    def is_held(rate: float) -> bool:
        requests = [replace(each, at_s=each.at_s / rate) for each in base]
        return meets_targets(members, requests, targets, patience_of(targets), passing)

    low, high = max(above, start / 2**HALVINGS), start
    if not is_held(low):
        return 0.0
    for _ in range(HALVINGS):
        rate = (low + high) / 2
        if is_held(rate):
            low = rate
        else:
            high = rate
    return low


def sample_size(members: Sequence[Member], traffic: Traffic, rate_per_s: float, least: int = REQUESTS) -> int:
    """Requests to look at, for a forecast that is long past its idle beginning."""
    answer_s = max(traffic.output_tokens.mean * member.curve.step_s(member.slots) for member in members)
    return round(min(max(least, SPANS * rate_per_s * answer_s), MOST_REQUESTS))
