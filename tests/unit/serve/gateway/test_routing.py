"""Which instance a request goes to, and what is learned on the way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from flagvega.serve.gateway.capacity import Capacity, Line
from flagvega.serve.gateway.errors import ApiError
from flagvega.serve.gateway.fleet import Fleet
from flagvega.serve.gateway.instance import Instance
from flagvega.serve.gateway.lengths import Lengths
from flagvega.serve.gateway.prefixes import BLOCK_CHARACTERS, MAX_BLOCKS, Prefixes, hash_blocks
from flagvega.serve.gateway.question import Question
from flagvega.serve.gateway.settings import InstanceSettings, Probing, Settings, Waiting


def ask(prompt: str = "x" * 400, max_tokens: int = 50, **more: Any) -> Question:
    blocks = hash_blocks(prompt)
    found = Question("/v1/completions", b"{}", "m", True, len(prompt), 0, blocks, max_tokens, 1, True, False)
    return replace(found, **more)


def fleet_of(*instances: dict[str, Any], slow_start_s: float = 0.0, first_token_s: float = 60.0) -> Fleet:
    entries = tuple(InstanceSettings(i, f"http://127.0.0.1:{i + 1}", **facts) for i, facts in enumerate(instances))
    probing, waiting = Probing(slow_start_s=slow_start_s), Waiting(first_token_s=first_token_s)
    fleet = Fleet(Settings(entries, probing=probing, waiting=waiting))
    for each in fleet.instances:
        each.admit(("m",), 4096)
    return fleet


async def place(fleet: Fleet, question: Question, tried: Sequence[int] = ()) -> Instance:
    route = fleet.choose(question, tried)
    async with asyncio.timeout(None) as scope:
        fleet.begin(route.writer, question, route.tokens, scope)
    return route.writer


def place_many(fleet: Fleet, number: int, **more: Any) -> list[int]:
    async def one_by_one() -> list[int]:
        return [(await place(fleet, ask(str(i) + "x" * 400, **more))).id for i in range(number)]

    return asyncio.run(one_by_one())


def capacity(slots: int, tokens_per_s: float, prefill: float = 10_000) -> dict[str, Any]:
    return {"slots": slots, "decode_tokens_per_s": tokens_per_s, "prefill_tokens_per_s": prefill}


def test_load_follows_capacity_when_there_is_more_than_slots_for_it() -> None:
    fleet = fleet_of(capacity(4, 400), capacity(4, 100))
    placed = place_many(fleet, 100)
    assert placed.count(0) == pytest.approx(80, abs=4)


def test_an_idle_slow_instance_is_left_idle_while_the_fast_one_has_slots() -> None:
    fleet = fleet_of(capacity(8, 800), capacity(8, 80))
    assert place_many(fleet, 8) == [0] * 8


def test_instances_alike_take_turns() -> None:
    placed = place_many(fleet_of(*[capacity(8, 800)] * 3), 9)
    assert sorted(placed) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_long_prompts_go_where_prompts_are_read_fast_and_long_answers_where_tokens_come_fast() -> None:
    reader, writer = capacity(8, 200, prefill=50_000), capacity(8, 800, prefill=2_000)
    fleet = fleet_of(reader, writer)
    assert fleet.choose(ask("y" * 40_000, max_tokens=2), ()).writer.id == 0
    assert fleet.choose(ask("y" * 400, max_tokens=200), ()).writer.id == 1


def test_a_prompt_whose_beginning_was_seen_goes_there_again_unless_it_is_much_busier() -> None:
    fleet = fleet_of(*[capacity(4, 200, prefill=1_000)] * 2)
    asyncio.run(place(fleet, ask("a" * 8000)))
    first = next(each for each in fleet.instances if each.flights)
    first.flights.clear()
    assert [fleet.choose(ask("a" * 8000 + str(i)), ()).writer.id for i in range(3)] == [first.id] * 3
    for i in range(40):
        asyncio.run(occupy(fleet, first, ask(f"{i}" + "b" * 400)))
    assert fleet.choose(ask("a" * 8000 + "z"), ()).writer.id != first.id


async def occupy(fleet: Fleet, instance: Instance, question: Question) -> None:
    async with asyncio.timeout(None) as scope:
        fleet.begin(instance, question, 100, scope)


def test_a_new_instance_gets_little_at_first() -> None:
    fleet = fleet_of(capacity(4, 400), capacity(4, 400), slow_start_s=30.0)
    fleet.instances[0].ready_at -= 60
    placed = place_many(fleet, 40)
    assert placed.count(1) < 8


def test_a_new_instance_is_not_taken_to_begin_late_for_being_new() -> None:
    fleet = fleet_of(capacity(2, 100), slow_start_s=30.0, first_token_s=3.0)
    assert place_many(fleet, 4, max_tokens=100) == [0] * 4


def test_new_pairs_come_after_old_ones_and_are_not_refused() -> None:
    reader, writer = capacity(4, 400) | {"role": "prefill"}, capacity(4, 400) | {"role": "decode"}
    fleet = fleet_of(reader, reader, writer, slow_start_s=30.0, first_token_s=0.5)
    for each in fleet.instances[::2]:
        each.ready_at -= 60
    route = fleet.choose(ask(), ())
    assert (route.reader and route.reader.id) == 0
    fleet.instances[0].ready_at += 60
    fleet.instances[2].ready_at += 60
    assert fleet.choose(ask("y" * 400), ()).writer.id == 2


def test_what_is_read_before_a_prompt_counts_when_all_slots_are_taken() -> None:
    fleet = fleet_of(capacity(2, 100, prefill=1000), first_token_s=3.0)
    with pytest.raises(ApiError):
        place_many(fleet, 100, max_tokens=1)
    # Each prompt of about a hundred tokens takes a tenth of a second, and nothing is read beside it.
    assert 26 <= fleet.num_flights <= 30


def test_what_would_begin_too_late_is_refused_with_the_time_to_wait() -> None:
    fleet = fleet_of(capacity(2, 100), first_token_s=3.0)
    with pytest.raises(ApiError) as caught:
        place_many(fleet, 100, max_tokens=100)
    assert caught.value.status == 429
    assert 1 <= (caught.value.retry_after_s or 0) <= 60
    # 2 slots of 50 tokens/s: a request takes 2 s, so one more round than the first may wait, not two.
    assert fleet.num_flights == 4


@pytest.mark.parametrize(
    ("question", "status"),
    [(ask(model="n"), 404), (ask("x" * 40_000), 400), (ask(), None)],
    ids=["unknown model", "too long", "fine"],
)
def test_what_nobody_can_serve_is_refused(question: Question, status: int | None) -> None:
    fleet = fleet_of(capacity(2, 100))
    if status is None:
        fleet.check(question)
        return
    with pytest.raises(ApiError) as caught:
        fleet.check(question)
    assert caught.value.status == status


def test_a_limit_beyond_what_a_model_holds_is_expected_to_end_there() -> None:
    fleet = fleet_of(capacity(1, 10))
    assert fleet.output_tokens(ask(max_tokens=1_000_000)) == fleet.output_tokens(ask(max_tokens=4096))


def test_answers_to_one_request_have_a_limit_and_those_below_it_fill_slots_without_end() -> None:
    fleet = fleet_of(capacity(8, 80))
    with pytest.raises(ApiError, match="more than 1024 answers") as found:
        fleet.check(ask(num_answers=1025))
    assert found.value.param == "n"
    fleet.check(ask(num_answers=1024))
    (instance,) = fleet.instances
    asyncio.run(place(fleet, ask(max_tokens=10, num_answers=1024)))
    # 1,024 answers in 8 slots are 128 rounds of 10 tokens, one each 0.1 s.
    assert instance.forecast(1, 1, 1, time.monotonic()).first_s == pytest.approx(128, rel=0.02)


def test_prompts_of_few_characters_and_many_tokens_do_not_have_others_refused() -> None:
    fleet = fleet_of(capacity(8, 80))
    for _ in range(100):  # an image is many tokens and no text
        fleet.learn(ask("x" * 100), 2000, 10)
    fleet.check(ask("x" * 4 * 4000))
    with pytest.raises(ApiError, match="tokens"):
        fleet.check(ask("x" * 4 * 9000))


def test_nothing_ready_and_draining_are_told_as_unavailable() -> None:
    fleet = fleet_of(capacity(2, 100))
    fleet.draining = True
    with pytest.raises(ApiError, match="about to stop"):
        fleet.check(ask())
    fleet.draining = False
    fleet.instances[0].state = "ejected"
    with pytest.raises(ApiError, match="no instance"):
        fleet.check(ask())


def test_an_instance_that_failed_a_request_is_not_asked_again_while_there_is_another() -> None:
    fleet = fleet_of(capacity(2, 900), capacity(2, 100))
    assert fleet.choose(ask(), {0}).writer.id == 1
    assert fleet.choose(ask(), {0, 1}).writer.id == 0


def test_a_line_is_found_and_never_falls() -> None:
    line = Line()
    for x in (1, 2, 4, 8, 16) * 40:
        line.add(x, 0.02 + 0.001 * x)
    assert line.at(12) == pytest.approx(0.032, rel=0.02)
    falling = Line()
    for x in (1, 2, 4, 8):
        falling.add(x, 1.0 / x)
    assert falling.slope == 0


def test_capacity_is_learned_and_what_was_given_gives_way() -> None:
    learned = Capacity(InstanceSettings(0, "http://a", slots=16))
    throttled = Capacity(InstanceSettings(0, "http://a", slots=16, decode_tokens_per_s=1600))
    assert throttled.decode_tokens_per_s == pytest.approx(1600)
    for i in range(400):
        learned.learn_step(1 + i % 16, 0.02)
        throttled.learn_step(1 + i % 16, 0.02)
        learned.learn_prefill(100 + 10 * (i % 50), 0.02 + (100 + 10 * (i % 50)) / 4000)
    assert learned.decode_tokens_per_s == pytest.approx(800, rel=0.05)
    assert throttled.decode_tokens_per_s == pytest.approx(800, rel=0.1)
    assert learned.prefill_tokens_per_s == pytest.approx(4000, rel=0.15)


def test_lengths_follow_the_limit_only_where_answers_do() -> None:
    filled, free = Lengths(), Lengths()
    for i in range(100):
        limit = 20 + 10 * (i % 9)
        filled.learn(limit, limit)
        free.learn(4096 if i % 2 else 512, 100 + i % 7)
    assert filled.expect(90) == pytest.approx(90, rel=0.05)
    assert free.expect(4096) == pytest.approx(103, rel=0.1)
    assert free.expect(10) == 10


def test_beginnings_are_known_block_by_block_and_the_oldest_are_forgotten() -> None:
    prefixes = Prefixes()
    blocks = hash_blocks("a" * BLOCK_CHARACTERS * 3)
    prefixes.add(blocks)
    assert prefixes.num_known(hash_blocks("a" * BLOCK_CHARACTERS * 2 + "b" * BLOCK_CHARACTERS)) == 2
    assert prefixes.num_known(hash_blocks("b" + "a" * BLOCK_CHARACTERS * 2)) == 0
    assert hash_blocks(tuple(range(200))) == hash_blocks(list(range(200)))
    for i in range(MAX_BLOCKS):
        prefixes.add((i,))
    assert prefixes.num_known(blocks) == 0
