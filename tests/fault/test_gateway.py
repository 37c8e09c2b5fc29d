"""The gateway under faults: every request that could be served is, whole and once; nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from tests.toy.serving import Served, ask, said


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with Served(tmp_path) as found:
        yield found


async def ask_many(
    served: Served, number: int, num_tokens: int, stream: bool = True, **more: Any
) -> list[dict[str, Any]]:
    async with aiohttp.ClientSession() as session:
        return await asyncio.gather(*(ask(session, served.url, num_tokens, stream, **more) for _ in range(number)))


def idle(served: Served) -> bool:
    """Whether nothing is in flight anywhere that answers."""
    flights = [each["requests_in_flight"] for each in served.health()["instances"]]
    toys = [served.toy(i) for i, toy in enumerate(served.toys) if toy.poll() is None]
    return not any(flights) and not any(toy["running"] + toy["waiting"] for toy in toys)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_no_request_without_a_token_is_lost_when_an_instance_is_killed(served: Served, stream: bool) -> None:
    for _ in range(2):
        served.add_toy("--slots", "4", "--step-s", "0.02")
    served.start([{"slots": 4}] * 2)

    async def load() -> list[dict[str, Any]]:
        asked = asyncio.create_task(ask_many(served, 24, 15, stream))
        await asyncio.sleep(0.4)
        served.toys[0].kill()
        return await asked

    answers = asyncio.run(load())
    whole = [each for each in answers if each["error"] is None]
    broken = [each for each in answers if each["error"] is not None]
    assert all(each["status"] == 200 and each["text"] == said(15) for each in whole)
    assert len(broken) <= 8 * stream  # those of its four slots, and whose ends were still on the way
    for each in broken:
        assert each["error"]["code"] == "instance_lost"
        assert said(15).startswith(each["text"])
        assert each["text"]
    assert len(whole) + len(broken) == 24
    served.wait_for(lambda: idle(served))
    served.restart_toy(0)
    served.wait_for(lambda: served.health()["ready"] == 2)
    assert served.metrics()['flagvega_ejections_total{instance="0"}'] >= 1


def test_no_request_without_a_token_is_lost_when_an_engine_dies_behind_its_server(served: Served) -> None:
    served.add_toy("--slots", "4", "--step-s", "0.02", "--dies-after", "8")
    served.add_toy("--slots", "4", "--step-s", "0.02")
    served.start([{"slots": 4}] * 2)
    answers = asyncio.run(ask_many(served, 24, 15))
    whole = [each for each in answers if each["error"] is None]
    broken = [each for each in answers if each["error"] is not None]
    assert all(each["status"] == 200 and each["text"] == said(15) for each in whole)
    assert len(broken) == 4
    for each in broken:
        assert each["error"]["code"] == "instance_lost"
        assert said(15).startswith(each["text"])
        assert each["text"]
    assert len(whole) + len(broken) == 24
    assert served.metrics().get('flagvega_broken_streams_total{instance="0"}', 0) == len(broken)
    served.wait_for(lambda: served.health()["instances"][0]["state"] == "ejected")


def test_requests_of_a_hung_instance_are_answered_by_another(served: Served) -> None:
    for _ in range(2):
        served.add_toy()
    served.start()
    served.toys[0].send_signal(signal.SIGSTOP)
    answers = asyncio.run(ask_many(served, 6, 5))
    assert [each["text"] for each in answers] == [said(5)] * 6
    assert {each["instance"] for each in answers} == {"1"}
    served.wait_for(lambda: served.health()["instances"][0]["state"] == "ejected")
    served.toys[0].send_signal(signal.SIGCONT)
    served.wait_for(lambda: served.health()["ready"] == 2)
    served.wait_for(lambda: idle(served))


def test_a_stream_of_an_instance_that_hangs_is_broken_off_and_not_repeated(served: Served) -> None:
    served.add_toy("--step-s", "0.05")
    served.start()

    async def load() -> dict[str, Any]:
        asked = asyncio.create_task(ask_many(served, 1, 200))
        await asyncio.sleep(0.6)
        served.toys[0].send_signal(signal.SIGSTOP)
        return (await asked)[0]

    answer = asyncio.run(load())
    assert answer["error"]["code"] == "instance_lost"
    assert said(200).startswith(answer["text"])
    assert 0 < len(answer["text"]) < len(said(200))


def test_what_waits_at_an_engine_that_hangs_behind_a_healthy_server_is_answered_by_another(served: Served) -> None:
    served.add_toy("--hangs-after", "1")  # of the completion that it is admitted for
    served.add_toy()
    served.start(probing={"interval_s": 0.2, "slow_start_s": 0.0, "stall_s": 1.0})
    began = time.monotonic()
    answers = asyncio.run(ask_many(served, 6, 5))
    assert [each["text"] for each in answers] == [said(5)] * 6
    assert {each["instance"] for each in answers} == {"1"}
    assert time.monotonic() - began < 6
    (hung, well) = served.health()["instances"]
    assert (hung["state"], well["state"]) == ("ejected", "ready")
    assert "it hangs: no token for" in hung["trouble"]


def test_an_engine_that_only_reads_a_long_prompt_is_not_taken_for_one_that_hangs(served: Served) -> None:
    served.add_toy("--prefill", "250")
    served.start(
        [{"slots": 8, "prefill_tokens_per_s": 250, "decode_tokens_per_s": 400}],
        probing={"interval_s": 0.1, "slow_start_s": 0.0, "stall_s": 0.4},
    )
    (answer,) = asyncio.run(ask_many(served, 1, 3, prompt="x" * 1000))  # 250 tokens
    assert answer["text"] == said(3)


def test_an_instance_that_starts_slowly_gets_requests_when_it_is_there(served: Served) -> None:
    served.add_toy()
    served.add_toy("--start-s", "2")
    served.start(wait=False)
    served.wait_for(lambda: served.health()["ready"] == 1)
    assert {each["instance"] for each in asyncio.run(ask_many(served, 4, 3))} == {"0"}
    served.wait_for(lambda: served.health()["ready"] == 2)
    assert {each["instance"] for each in asyncio.run(ask_many(served, 16, 3))} == {"0", "1"}


def test_what_one_full_instance_refuses_another_answers_and_both_full_is_said_so(served: Served) -> None:
    served.add_toy("--slots", "1", "--queue", "0")
    served.add_toy("--slots", "2", "--queue", "2", "--step-s", "0.05")
    served.ports, ports = served.ports[1:], served.ports
    served.start([{"slots": 2}])
    answers = asyncio.run(ask_many(served, 12, 10))
    assert {each["status"] for each in answers} <= {200, 503}
    refused = [each for each in answers if each["status"] == 503]
    assert refused
    assert all(each["error"]["message"] and int(each["headers"]["Retry-After"]) >= 1 for each in refused)
    served.ports = ports


def test_a_request_is_refused_early_when_its_first_token_would_come_too_late(served: Served) -> None:
    served.add_toy("--slots", "2", "--step-s", "0.05")
    served.start(
        [{"slots": 2, "decode_tokens_per_s": 40, "prefill_tokens_per_s": 20000}], waiting={"first_token_s": 1.2}
    )
    began = time.monotonic()

    async def load() -> list[tuple[float, dict[str, Any]]]:
        async with aiohttp.ClientSession() as session:

            async def one() -> tuple[float, dict[str, Any]]:
                answer = await ask(session, served.url, 20)
                return time.monotonic() - began, answer

            return await asyncio.gather(*(one() for _ in range(12)))

    answers = asyncio.run(load())
    refused = [(spent_s, each) for spent_s, each in answers if each["status"] == 429]
    served_ones = [each for _, each in answers if each["status"] == 200]
    assert len(served_ones) == 4  # two at once, two after a second
    assert all(each["text"] == said(20) for each in served_ones)
    assert all(spent_s < 1.0 for spent_s, _ in refused)
    assert all(each["error"]["code"] == "overloaded" for _, each in refused)
    assert all(int(each["headers"]["Retry-After"]) >= 1 for _, each in refused)


def test_a_client_that_leaves_takes_its_request_with_it(served: Served) -> None:
    served.add_toy("--step-s", "0.05")
    served.start()

    async def leave(stream: bool) -> None:
        async with aiohttp.ClientSession() as session:
            body = {"model": "toy", "prompt": "x", "max_tokens": 1000, "stream": stream}
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5), session.post(f"{served.url}/v1/completions", json=body) as response:
                    await response.read()

    asyncio.run(leave(stream=True))
    asyncio.run(leave(stream=False))
    served.wait_for(lambda: idle(served), 5)
    assert served.toy(0)["cancelled"] == 2
    assert served.metrics()["flagvega_clients_left_total"] == 2


def test_a_client_that_reads_nothing_is_let_go(served: Served, capfd: pytest.CaptureFixture[str]) -> None:
    served.add_toy("--step-s", "0.0001")
    served.start(waiting={"silence_s": 1.0})
    host, port = served.url.removeprefix("http://").split(":")
    body = json.dumps({"model": "toy", "prompt": "x", "max_tokens": 100_000, "stream": True}).encode()
    with socket.create_connection((host, int(port))) as client:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        served.wait_for(lambda: served.toy(0)["cancelled"] == 1)
    assert served.metrics()["flagvega_clients_left_total"] == 1
    assert "Traceback" not in capfd.readouterr().err


def test_an_instance_that_fails_a_request_does_not_fail_it_for_the_client(served: Served) -> None:
    served.add_toy("--fails")
    served.add_toy()
    served.start()
    answers = asyncio.run(ask_many(served, 6, 3, prompt="fail, please"))
    assert [each["text"] for each in answers] == [said(3)] * 6


async def post(served: Served, body: bytes, path: str = "/v1/completions", **headers: str) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(served.url + path, data=body, headers=headers) as response,
    ):
        return response.status, await response.json()


def test_bad_requests_are_told_in_openai_s_form(served: Served) -> None:
    served.add_toy()
    served.start(limits={"body_bytes": 4096, "body_s": 0.5, "prompt_tokens": 500})
    cases: list[tuple[bytes, int]] = [
        (b"", 400),
        (b'{"model": "toy"', 400),
        (b"\xff\xfe", 400),
        (b"[]", 400),
        (b"[" * 4000, 400),
        (b"{}", 400),
        (b'{"model": 3}', 400),
        (b'{"model": "other", "prompt": "x"}', 404),
        (json.dumps({"model": "toy", "prompt": "x" * 3000}).encode(), 400),
        (json.dumps({"model": "toy", "prompt": "x" * 5000}).encode(), 413),
        (json.dumps({"model": "toy", "prompt": [[1, 2], "a", None], "max_tokens": 1, "n": "many"}).encode(), 200),
    ]
    for body, status in cases:
        found, value = asyncio.run(post(served, body))
        assert found == status, (body[:50], value)
        if status != 200:
            assert set(value["error"]) == {"message", "type", "param", "code"}
    assert asyncio.run(post(served, b"{}", "/v2/nothing"))[0] == 404

    async def chunks() -> Any:
        yield b"{"
        await asyncio.sleep(2)

    assert asyncio.run(post(served, chunks()))[0] == 408  # type: ignore[arg-type]
    assert asyncio.run(ask_many(served, 1, 2))[0]["text"] == said(2)


def test_keys_are_asked_for_where_they_are_named(served: Served) -> None:
    served.add_toy()
    keys = {"CLIENT_KEY": "abc", "ADMIN_KEY": "def"}
    served.start(env=keys, api_key_env="CLIENT_KEY", admin_key_env="ADMIN_KEY")
    body = json.dumps({"model": "toy", "prompt": "x", "max_tokens": 1}).encode()
    for given in (
        {},
        {"Authorization": "Bearer nope"},
        {"Authorization": "Basic abc"},
        {"Authorization": "Bearer \u00e9"},
    ):
        status, value = asyncio.run(post(served, body, **given))
        assert (status, value["error"]["code"]) == (401, "invalid_api_key")
    assert asyncio.run(post(served, body, Authorization="Bearer abc"))[0] == 200
    assert asyncio.run(post(served, b"", "/drain", Authorization="Bearer abc"))[0] == 401
    assert asyncio.run(post(served, b"", "/drain?instance=0", Authorization="Bearer def"))[0] == 202
    assert asyncio.run(post(served, body, Authorization="Bearer abc"))[0] == 503


def test_sigterm_lets_what_is_being_answered_end_and_takes_nothing_new(served: Served) -> None:
    served.add_toy("--step-s", "0.05")
    served.start()

    async def load() -> tuple[list[dict[str, Any]], dict[str, Any]]:
        asked = asyncio.create_task(ask_many(served, 3, 30))
        await asyncio.sleep(0.5)
        assert served.gateway
        served.gateway.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        late = await ask_many(served, 1, 3)
        return await asked, late[0]

    answers, late = asyncio.run(load())
    assert [each["text"] for each in answers] == [said(30)] * 3
    assert (late["status"], late["error"]["code"]) == (503, "unavailable")
    assert served.gateway
    assert served.gateway.wait(10) == 0
    status = json.loads((served.folder / "serve" / "gateway.json").read_text())
    assert status["state"] == "ended"
    records = [json.loads(line) for line in (served.folder / "serve" / "gateway.jsonl").read_text().splitlines()]
    assert sum(each["output_tokens_per_s"] * each["seconds"] for each in records) >= 0
    assert records[-1]["instances"][0]["decode_tokens_per_second"] > 0


@pytest.mark.parametrize(("number", "header_s"), [(2000, 3.0), pytest.param(10_000, 8.0, marks=pytest.mark.slow)])
def test_idle_connections_cost_nobody_an_answer_and_are_closed(served: Served, number: int, header_s: float) -> None:
    served.add_toy()
    served.start(limits={"header_s": header_s})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < number + 200:
        pytest.skip(f"this machine lets a process have {hard} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    host, port = served.url.removeprefix("http://").split(":")
    sockets: list[socket.socket] = []
    try:
        for i in range(number):
            sockets.append(socket.create_connection((host, int(port))))
            if i % 2:
                sockets[-1].send(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n")  # and never the rest
        assert [each["text"] for each in asyncio.run(ask_many(served, 8, 5))] == [said(5)] * 8
        assert served.gateway
        process = psutil.Process(served.gateway.pid)
        served.wait_for(lambda: process.num_fds() < 60, 25)
    finally:
        for each in sockets:
            each.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_second_gateway_at_the_same_port_says_so(served: Served, capfd: pytest.CaptureFixture[str]) -> None:
    served.add_toy()
    served.start()
    settings = json.loads((served.folder / "gateway.config.json").read_text())
    served.start(wait=False, port=settings["port"])
    assert served.gateway
    assert served.gateway.wait(20) == 4
    assert "cannot listen" in capfd.readouterr().err
