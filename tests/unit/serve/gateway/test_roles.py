"""Which pair of instances shares a request, and what each of them is asked."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from flagvega.serve.gateway.errors import ApiError
from flagvega.serve.gateway.fleet import Fleet
from flagvega.serve.gateway.handover import ask_to_read, ask_to_write
from flagvega.serve.gateway.question import read_question
from tests.unit.serve.gateway.test_routing import ask, capacity, fleet_of

READER, WRITER = {"role": "prefill"}, {"role": "decode"}


def chosen(fleet: Fleet, tried: tuple[int, ...] = (), **about: Any) -> tuple[int | None, int]:
    route = fleet.choose(ask(**about), tried)
    return (route.reader and route.reader.id, route.writer.id)  # type: ignore[return-value]


def test_one_reads_and_one_writes_each_the_best_at_it() -> None:
    fleet = fleet_of(
        capacity(8, 800, prefill=1_000) | READER,
        capacity(8, 80, prefill=20_000) | READER,
        capacity(8, 100) | WRITER,
        capacity(8, 600) | WRITER,
    )
    assert chosen(fleet, prompt="x" * 20_000) == (1, 3)
    route = fleet.choose(ask(prompt="x" * 20_000), ())
    assert route.tokens == 1
    assert route.reader_tokens == pytest.approx(5_000, rel=0.1)


def test_load_follows_capacity_on_both_sides() -> None:
    fleet = fleet_of(
        capacity(100, 800, prefill=40_000) | READER,
        capacity(100, 800, prefill=10_000) | READER,
        capacity(4, 400) | WRITER,
        capacity(4, 100) | WRITER,
    )

    async def place_all() -> list[tuple[int, int]]:
        found = []
        async with asyncio.timeout(None) as scope:
            for i in range(100):
                question = ask(str(i) + "x" * 4_000)
                route = fleet.choose(question, ())
                assert route.reader
                fleet.begin(route.reader, question, route.reader_tokens, scope, reads=True)
                fleet.begin(route.writer, question, route.tokens, scope)
                found.append((route.reader.id, route.writer.id))
        return found

    placed = asyncio.run(place_all())
    assert [reader for reader, _ in placed].count(0) == pytest.approx(80, abs=8)
    assert [writer for _, writer in placed].count(2) == pytest.approx(80, abs=8)


def test_an_instance_without_a_role_does_all_where_that_is_sooner_and_its_part_where_it_is_not() -> None:
    fast, slow = capacity(8, 2000, prefill=50_000), capacity(8, 50, prefill=500)
    assert chosen(fleet_of(slow | READER, slow | WRITER, fast)) == (None, 2)
    assert chosen(fleet_of(fast | READER, slow | WRITER, capacity(8, 2000, prefill=500)), prompt="x" * 8_000) == (0, 2)


def test_what_cannot_be_split_and_what_has_no_partner_is_done_by_one() -> None:
    fleet = fleet_of(READER, WRITER)
    assert chosen(fleet) == (0, 1)
    assert chosen(fleet, is_single=False) == (None, 1)
    assert chosen(fleet, tried=(0,)) == (None, 1)
    fleet.instances[1].state = "ejected"
    assert chosen(fleet) == (None, 0)


def test_a_first_token_that_comes_too_late_on_every_pair_is_refused() -> None:
    fleet = fleet_of(capacity(8, 100, prefill=100) | READER, capacity(8, 100) | WRITER, first_token_s=5)
    with pytest.raises(ApiError, match="all instances are busy"):
        fleet.choose(ask(prompt="x" * 4_000), ())


def test_only_the_gateway_says_where_a_cache_is() -> None:
    question = read_question("/v1/completions", b'{"model": "m", "kv_transfer_params": {"file": "/etc/passwd"}}')
    with pytest.raises(ApiError, match="not a client's to give"):
        fleet_of(READER, WRITER).check(question)
    fleet_of({}, {}).check(question)  # the engines have no connector of ours then


@pytest.mark.parametrize(
    ("more", "is_single"),
    [
        ({}, True),
        ({"n": 2}, False),
        ({"prompt": ["a", "b"]}, False),
        ({"echo": True}, False),
        ({"echo": False, "prompt_logprobs": None}, True),
        ({"prompt_logprobs": 0}, False),
    ],
)
def test_answers_that_are_many_or_say_something_of_the_prompt_are_not_split(
    more: dict[str, Any], is_single: bool
) -> None:
    body = json.dumps({"model": "m", "prompt": "hello", **more}).encode()
    assert read_question("/v1/completions", body).is_single is is_single


def test_the_reader_is_asked_for_one_token_and_the_writer_for_all_with_what_the_reader_says() -> None:
    value = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 50,
             "min_tokens": 3, "stream": True, "stream_options": {"include_usage": True}, "seed": 4}  # fmt: skip
    question = replace(ask(), path="/v1/chat/completions", body=json.dumps(value).encode())
    read = json.loads(ask_to_read(question))
    assert (read["max_tokens"], read["max_completion_tokens"], read["stream"], read["seed"]) == (1, 1, False, 4)
    assert read["kv_transfer_params"]["do_remote_decode"] is True
    assert not {"min_tokens", "stream_options"} & read.keys()
    params = {"do_remote_prefill": True, "file": "f"}
    write = json.loads(ask_to_write(question, json.dumps({"kv_transfer_params": params}).encode()).body)
    assert write == value | {"kv_transfer_params": params}
    wrong = replace(question, body=json.dumps(value | {"min_tokens": 60, "max_completion_tokens": -4}).encode())
    read = json.loads(ask_to_read(wrong))
    assert (read["max_completion_tokens"], read["min_tokens"]) == (-4, 60)
    for nothing in (b"{}", b"[]", b"not JSON", b'{"kv_transfer_params": null}'):
        assert ask_to_write(question, nothing) == question
