"""What an engine says of itself, read and compared."""

from __future__ import annotations

import pytest

from flagvega.serve.scrape import Scrape, add, describe, gauges, parse, rise

NAMES = {
    "running": "e:running",
    "kv_share": "e:kv",
    "requests": "e:done_total",
    "output_tokens": "e:tokens_total",
    "prefix_queries": "e:asked_total",
    "prefix_hits": "e:hit_total",
    "first_token_s": "e:first_seconds",
}


def text(done: int, tokens: int, below: tuple[int, int, int]) -> str:
    fast, slow, all_of_them = below
    return f"""# HELP e:done_total about it
# TYPE e:done_total counter
e:done_total{{engine="0",reason="stop"}} {done - 1}
e:done_total{{engine="0",reason="length, or \\"more\\""}} 1.0
e:tokens_total{{engine="0"}} {tokens}
e:running{{engine="0"}} 3.0
e:kv{{engine="0"}} 0.25
e:odd NaN
e:first_seconds_bucket{{engine="0",le="0.1"}} {fast}
e:first_seconds_bucket{{engine="0",le="0.3"}} {slow}
e:first_seconds_bucket{{engine="0",le="+Inf"}} {all_of_them}
e:first_seconds_sum{{engine="0"}} 9
"""


def test_what_happened_between_two_looks_is_told() -> None:
    before, now = parse(text(2, 10, (1, 1, 1))), parse(text(12, 60, (1, 11, 11)))
    told = describe(rise(before, now), 5.0, NAMES)
    assert (told["num_requests"], told["requests_per_s"], told["output_tokens_per_s"]) == (10, 2.0, 10.0)
    assert told["first_token_s"] == {"p50": 0.2, "p99": pytest.approx(0.298)}
    assert told["per_token_s"] is None
    assert gauges(now, NAMES) == {"running": 3.0, "kv_share": 0.25}


def test_counters_that_fell_began_anew() -> None:
    before, now = parse(text(100, 900, (50, 90, 100))), parse(text(4, 30, (2, 4, 4)))
    told = describe(rise(before, now), 1.0, NAMES)
    assert (told["num_requests"], told["num_output_tokens"]) == (4, 30)
    assert told["first_token_s"] == {"p50": 0.1, "p99": pytest.approx(0.296)}


def test_stretches_of_time_add_up() -> None:
    looks = [parse(text(*each)) for each in ((2, 10, (1, 1, 1)), (5, 30, (2, 4, 4)), (1, 7, (1, 1, 1)))]
    total, last = Scrape(), Scrape()
    for look in looks:
        total, last = add(total, rise(last, look)), look
    told = describe(total, 10.0, NAMES)
    assert (told["num_requests"], told["num_output_tokens"]) == (5 + 1, 30 + 7)


def test_times_beyond_the_last_edge_count_as_the_last_edge() -> None:
    told = describe(parse(text(9, 9, (0, 0, 8))), 1.0, NAMES)
    assert told["first_token_s"] == {"p50": 0.3, "p99": 0.3}


def test_the_share_that_a_cache_knew_is_of_what_was_asked() -> None:
    told = describe(parse("e:asked_total 200\ne:hit_total 50\n"), 1.0, NAMES)
    assert told["prefix_share"] == 0.25
    assert describe(Scrape(), 1.0, NAMES)["prefix_share"] is None
