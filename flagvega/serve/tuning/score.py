"""One number for a load: seconds for each request that was answered in time."""

from __future__ import annotations

from typing import Final

from flagvega.serve.traffic import Answered, Outcome, Targets, Traffic

UNIT: Final = "good request"
CLOSE: Final = 0.1
"""What an answer that came late counts at most: a search must see which of two bad configurations is nearer."""
NEVER_S: Final = 1e9


def seconds_per_good(traffic: Traffic, targets: Targets, outcome: Outcome) -> float:
    """The search makes it small; with a rate, it is the time between two arrivals when all answers are in time."""
    rate = traffic.rate_per_s or len(outcome.answers) / outcome.duration_s
    credit = sum(_credit(answer, targets) for answer in outcome.answers) / len(outcome.answers)
    return 1 / (rate * credit) if credit else NEVER_S


def least_s(traffic: Traffic) -> float:
    """What no configuration can undercut."""
    return 1 / traffic.rate_per_s if traffic.rate_per_s else 0.0


def _credit(answer: Answered, targets: Targets) -> float:
    if answer.meets(targets):
        return 1.0
    if answer.error:
        return 0.0
    pairs = ((targets.first_token_s, answer.first_token_s), (targets.per_token_s, answer.per_token_s))
    return CLOSE * min(limit / took for limit, took in pairs if limit is not None and took > limit)
