"""Real engines behind the gateway, in trouble: what can be served is, whole and once, and nothing is left behind.

They are on emulated chips, so that how long an answer takes is known on any machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from threading import Thread
from typing import Any

import aiohttp
import psutil
import pytest

from flagvega.records import read_json
from hardware.emulated.vllm_plugin.flagvega_emulated.pace import read_step_curve
from tests.rank.served import Served, flagvega, make_model, needs_vllm
from tests.toy import serving
from tools.bench.serve_engines import free_port

pytestmark = needs_vllm

CHIP, SLOTS, CONTEXT, BODY_BYTES, FIRST_TOKEN_S = "emu-l", 4, 4096, 65_536, 4.0
NUM_IDLE = 10_000
MARGIN_FILES, MARGIN_BYTES = 8, 16 << 20


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two engines, of which the second is held up while it loads."""
    root = tmp_path_factory.mktemp("faults")
    given = {"model": str(make_model(root / "model", text=True)), "served_model_name": "m", "dtype": "float32",
             "enforce_eager": True, "max_model_len": CONTEXT, "max_num_seqs": SLOTS}  # fmt: skip
    services = [{"serve_id": f"m{i}", "chip": CHIP, "engine_args": {**given, "port": free_port()}} for i in range(2)]
    found = Served(
        root,
        services,
        cluster={"nodes": [{"chip": CHIP, "devices": 2}]},
        gateway={
            "limits": {"body_bytes": BODY_BYTES},
            "waiting": {"first_token_s": FIRST_TOKEN_S},
            "probing": {"slow_start_s": 0.0},
        },
    )
    try:
        found.wait(lambda: found.events(1, "start"))
        time.sleep(4)  # it is importing by now
        os.killpg(found.process(1).pid, signal.SIGSTOP)
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="module")
def both(served: Served) -> Served:
    """Both serve."""
    os.killpg(served.process(1).pid, signal.SIGCONT)
    served.wait_for_all()
    return served


async def ask_many(served: Served, number: int, num_tokens: int, stream: bool = True) -> list[dict[str, Any]]:
    """Answers to as many unlike questions at once; ``usage`` is the engine's own count."""

    async def one(session: aiohttp.ClientSession, index: int) -> dict[str, Any]:
        begun = time.monotonic()
        options = {"stream_options": {"include_usage": True}} if stream else {}
        asked: dict[str, Any] = {"model": "m", "prompt": f"{index}?", "ignore_eos": True, **options}
        answer = await serving.ask(session, served.url, num_tokens, stream, **asked)
        return answer | {"took_s": time.monotonic() - begun}

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        return await asyncio.gather(*(one(session, i) for i in range(number)))


def whole(answer: dict[str, Any], num_tokens: int) -> bool:
    """Whether all of an answer came."""
    return answer["status"] == 200 and not answer["error"] and answer["usage"]["completion_tokens"] == num_tokens


def gateway(served: Served) -> psutil.Process:
    return psutil.Process(read_json(served.directory.root / "serve" / "gateway.json")["pid"])


def test_an_engine_that_starts_slowly_gets_requests_when_it_is_there(served: Served) -> None:
    served.wait(lambda: served.num_ready() == 1)
    answers = asyncio.run(ask_many(served, 2 * SLOTS, 20))
    assert all(whole(each, 20) and each["instance"] == "0" for each in answers)
    os.killpg(served.process(1).pid, signal.SIGCONT)
    served.wait_for_all()
    answers = asyncio.run(ask_many(served, 4 * SLOTS, 20))
    assert {each["instance"] for each in answers if whole(each, 20)} == {"0", "1"}
    assert not served.events(1, "restart")


def test_what_is_wrong_with_a_request_is_told_in_openai_s_form(both: Served) -> None:
    """The gateway's own refusals, and those of vLLM."""
    cases: list[tuple[bytes, int]] = [
        (b"", 400),
        (b'{"model": "m"', 400),
        (b"\xff\xfe", 400),
        (b"[" * 50_000, 400),
        (b'{"model": "m", "prompt": "' + b"x" * BODY_BYTES + b'"}', 413),
        (json.dumps({"model": "another", "prompt": "x"}).encode(), 404),
        (json.dumps({"model": "m", "prompt": "x" * 20_000}).encode(), 400),  # far too long
        (json.dumps({"model": "m", "prompt": [1] * (CONTEXT + 1)}).encode(), 400),  # too long by one
        (json.dumps({"model": "m", "prompt": [257]}).encode(), 400),
        (json.dumps({"model": "m", "prompt": "x", "temperature": -1, "stream": True}).encode(), 400),
        (json.dumps({"model": "m", "prompt": "x", "n": "many"}).encode(), 400),
        (json.dumps({"model": "m", "prompt": "x", "structured_outputs": {"regex": "("}}).encode(), 400),
    ]

    async def post(body: bytes) -> tuple[int, Any]:
        async with aiohttp.ClientSession() as session, session.post(
            f"{both.url}/v1/completions", data=body, headers={"Content-Type": "application/json"}
        ) as response:  # fmt: skip
            return response.status, await response.json()

    for body, status in cases:
        found, value = asyncio.run(post(body))
        assert found == status, (body[:60], value)
        assert set(value["error"]) == {"message", "type", "param", "code"}
        assert value["error"]["message"]


def test_clients_that_leave_take_their_requests_out_of_the_engines(both: Served) -> None:
    def num_made() -> float:
        return sum(both.metric(port, "vllm:generation_tokens_total") for port in both.ports)

    async def leave(stream: bool) -> None:
        body = {"model": "m", "prompt": "x", "max_tokens": CONTEXT - 10, "ignore_eos": True, "stream": stream}
        async with aiohttp.ClientSession() as session:
            with suppress(TimeoutError):
                async with asyncio.timeout(None if stream else 1.0), session.post(
                    f"{both.url}/v1/completions", json=body
                ) as response:  # fmt: skip
                    for _ in range(9):
                        await response.content.readline()

    before = num_made()
    for stream in (True, False):
        asyncio.run(leave(stream))
        both.wait(lambda: both.num_running() == 0, 5)
    assert num_made() < before + CONTEXT


def test_a_server_that_hangs_costs_no_request(both: Served) -> None:
    os.killpg(both.process(0).pid, signal.SIGSTOP)
    try:
        answers = asyncio.run(ask_many(both, 2 * SLOTS, 20))
        assert all(whole(each, 20) and each["instance"] == "1" for each in answers)
        assert both.ids("ready") == [1]
    finally:
        os.killpg(both.process(0).pid, signal.SIGCONT)
    both.wait_for_all()


def test_more_than_can_be_begun_in_time_is_refused_at_once_and_the_rest_is_whole(both: Served) -> None:
    asyncio.run(ask_many(both, 2 * SLOTS, 20))  # it learns how fast they are
    num_tokens = round(0.75 * FIRST_TOKEN_S / read_step_curve(CHIP).duration_s(SLOTS, 0))
    answers = asyncio.run(ask_many(both, 10 * SLOTS, num_tokens))
    taken = [each for each in answers if each["status"] == 200]
    refused = [each for each in answers if each["status"] == 429]
    assert len(taken) + len(refused) == len(answers)
    assert 2 * SLOTS < len(taken) < 8 * SLOTS
    assert all(whole(each, num_tokens) for each in taken)
    for each in refused:
        assert each["error"]["code"] == "overloaded"
        assert int(each["headers"]["Retry-After"]) >= 1
        assert each["took_s"] < FIRST_TOKEN_S
    longest = [max(each["took_s"] for each in group) for group in (taken, refused)]
    print(f"{len(taken)} answers of {num_tokens} tokens took {longest[0]:.1f} s at most, refusals {longest[1]:.2f} s")


def test_ten_thousand_idle_connections_cost_nobody_an_answer_and_leave_nothing(both: Served) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < NUM_IDLE + 200:
        pytest.skip(f"this machine lets a process have {hard} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    process, seen = gateway(both), []
    both.wait(lambda: both.num_running() == 0, 30)
    try:
        for _ in range(3):
            seen.append((process.num_fds(), process.memory_info().rss))
            sockets = [socket.create_connection(("127.0.0.1", both.gateway)) for _ in range(NUM_IDLE)]
            for each in sockets[::2]:
                each.send(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n")  # and never the rest
            both.wait(lambda: process.num_fds() >= NUM_IDLE, 20)
            assert all(whole(each, 50) for each in asyncio.run(ask_many(both, 4 * SLOTS, 50)))
            for each in sockets:
                each.close()
            both.wait(lambda: process.num_fds() <= seen[0][0] + MARGIN_FILES, 20)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    print(f"files and bytes of the gateway before each time: {seen}, at last {process.memory_info().rss}")
    assert process.memory_info().rss <= seen[-1][1] + MARGIN_BYTES  # the first times fill its pools


@pytest.mark.parametrize("part", ["engine", "server"])
def test_a_killed_engine_costs_only_what_it_was_writing_and_is_started_again(both: Served, part: str) -> None:
    victim, num_tokens = 1, 50
    before = len(both.events(victim, "restart"))

    def kill() -> None:
        both.wait(lambda: both.metric(both.ports[victim], "vllm:num_requests_running") == SLOTS, 30)
        time.sleep(0.5)
        (both.engine(victim) if part == "engine" else both.process(victim)).kill()

    async def load() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        killer = asyncio.to_thread(kill)
        streams, others, _ = await asyncio.gather(
            ask_many(both, 2 * SLOTS - 2, num_tokens), ask_many(both, 2, num_tokens, stream=False), killer
        )
        return streams, others

    streams, others = asyncio.run(load())
    assert all(whole(each, num_tokens) for each in others)
    broken = [each for each in streams if not whole(each, num_tokens)]
    assert len(broken) <= SLOTS
    for each in broken:
        assert (each["status"], each["instance"], each["error"]["code"]) == (200, str(victim), "instance_lost")
        assert "begun" in each  # a token may have no text yet
    print(f"{part} killed: {len(broken)} streams were broken off")
    both.wait(lambda: len(both.events(victim, "restart")) > before)
    both.wait(lambda: len(both.events(victim, "serving")) > len(both.events(victim, "restart")))
    both.wait_for_all()


def test_what_is_being_answered_is_finished_when_the_run_is_stopped(both: Served) -> None:
    answers: list[dict[str, Any]] = []
    asking = Thread(target=lambda: answers.extend(asyncio.run(ask_many(both, SLOTS, 150))))
    asking.start()
    both.wait(lambda: both.num_running() == SLOTS, 20)
    flagvega("action=stop", f"run_dir={both.directory.root}")
    asking.join()
    assert [whole(each, 150) for each in answers] == [True] * SLOTS
