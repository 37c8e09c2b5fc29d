"""Pairs of instances under faults: one reads prompts, another writes answers, and either may go at any time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fault.test_gateway import ask_many, idle
from tests.toy.serving import Served, ask, said

LONG = "x" * 4000
READER, WRITER = {"role": "prefill", "slots": 8}, {"role": "decode", "slots": 8}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with Served(tmp_path) as found:
        yield found


def test_a_prompt_is_read_by_one_and_answered_by_another(served: Served) -> None:
    served.add_toy("--step-s", "0.005")
    served.add_toy("--step-s", "0.005")
    served.start([READER, WRITER])
    for stream in (True, False):
        answers = asyncio.run(ask_many(served, 6, 5, stream, prompt=LONG))
        assert [each["text"] for each in answers] == [said(5)] * 6
        assert {(each["headers"]["X-Flagvega-Prefill"], each["instance"]) for each in answers} == {("0", "1")}
    assert (served.toy(0)["gave"], served.toy(1)["took"]) == (12, 12)
    assert served.toy(1)["read_tokens"] < 20
    metrics = served.metrics()
    assert metrics['flagvega_prompts_handed_over_total{reader="0",writer="1"}'] == 12
    assert metrics['flagvega_prompt_tokens_total{instance="0"}'] == 12 * len(LONG) // 4
    assert metrics['flagvega_requests_total{instance="1",status="200"}'] == 12


def test_another_reads_when_one_is_killed_and_the_one_that_writes_when_nobody_does(served: Served) -> None:
    for _ in range(2):
        served.add_toy("--prefill", "2000")
    served.add_toy()
    served.start([READER, READER, WRITER])

    async def load() -> list[dict[str, Any]]:
        asked = asyncio.create_task(ask_many(served, 8, 5, prompt=LONG))
        await asyncio.sleep(0.3)
        served.toys[0].kill()
        return await asked

    answers = asyncio.run(load())
    assert [each["text"] for each in answers] == [said(5)] * 8
    assert {each["headers"]["X-Flagvega-Prefill"] for each in answers} == {"1"}
    served.toys[1].kill()
    answers = asyncio.run(ask_many(served, 2, 5, prompt=LONG))
    assert [each["text"] for each in answers] == [said(5)] * 2
    assert not any("X-Flagvega-Prefill" in each["headers"] for each in answers)
    served.wait_for(lambda: idle(served))


def test_nothing_is_repeated_after_the_first_token_and_nothing_lost_before(served: Served) -> None:
    served.add_toy("--prefill", "2000")
    for _ in range(2):
        served.add_toy("--step-s", "0.05")
    served.start([READER, WRITER, WRITER])

    async def load() -> list[dict[str, Any]]:
        async with aiohttp.ClientSession() as session:
            begun = asyncio.create_task(ask(session, served.url, 60))
            await asyncio.sleep(0.5)
            writer = next(i for i in (1, 2) if served.toy(i)["running"])
            # These are still being read, some of them for the one that is killed.
            reading = [asyncio.create_task(ask(session, served.url, 5, prompt=LONG + str(i))) for i in range(4)]
            await asyncio.sleep(0.2)
            served.toys[writer].kill()
            return [await begun, *await asyncio.gather(*reading)]

    broken, *whole = asyncio.run(load())
    assert broken["error"]["code"] == "instance_lost"
    assert said(60).startswith(broken["text"])
    assert broken["text"]
    assert [each["text"] for each in whole] == [said(5)] * 4
    served.wait_for(lambda: idle(served))


def test_a_client_that_leaves_while_its_prompt_is_read_leaves_nothing_behind(served: Served) -> None:
    served.add_toy("--prefill", "1000")
    served.add_toy()
    served.start([READER, WRITER])

    async def leave() -> None:
        async with aiohttp.ClientSession() as session:
            asked = asyncio.create_task(ask(session, served.url, 5, prompt=LONG))
            await asyncio.sleep(0.4)
            assert [each["requests_in_flight"] for each in served.health()["instances"]] == [1, 1]
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)

    asyncio.run(leave())
    served.wait_for(lambda: not any(each["requests_in_flight"] for each in served.health()["instances"]))
    served.wait_for(lambda: served.toy(0)["cancelled"] == 1)
    assert served.toy(1)["took"] == 0
