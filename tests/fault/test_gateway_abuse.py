"""What a client can send to harm others: it is told no, in OpenAI's form, and nobody else waits for it."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.toy.serving import Served

PATH = "/v1/completions"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder: Path = tmp_path_factory.mktemp("gateway")
    with Served(folder) as found:
        found.add_toy("--step-s", "0.02")
        found.start()
        yield found


def address(served: Served) -> tuple[str, int]:
    host, port = served.url.removeprefix("http://").split(":")
    return host, int(port)


def post(served: Served, body: bytes, **headers: str) -> tuple[int, Any]:
    client = http.client.HTTPConnection(*address(served), timeout=20)
    try:
        client.request("POST", PATH, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = client.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        client.close()


def send_until_nobody_reads(client: socket.socket, data: bytes, most: int = 5000) -> None:
    for _ in range(most):
        client.sendall(data)


def question(**more: Any) -> bytes:
    return json.dumps({"model": "toy", "prompt": "x", "max_tokens": 2, **more}).encode()


def test_numbers_that_no_engine_has_are_refused_or_cost_nobody_anything(served: Served) -> None:
    huge = 10**4000
    for body in (
        question(n=100_000_000),
        question(n=huge),
        question(n=2, prompt=["x"] * 1000),
        question(prompt=[[]] * 2000),
    ):
        status, told = post(served, body)
        assert (status, told["error"]["param"]) == (400, "n")
    # What the engine makes of an endless answer is its own affair; the next request is answered at once.
    with socket.create_connection(address(served)) as client:
        body = question(max_tokens=huge // 10)
        client.sendall(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        served.wait_for(lambda: served.health()["instances"][0]["requests_in_flight"] == 1)
        began = time.monotonic()
        assert post(served, question())[0] == 200
        assert time.monotonic() - began < 5
    served.wait_for(lambda: served.health()["instances"][0]["requests_in_flight"] == 0)


def test_bodies_that_would_have_to_be_unpacked_are_refused_unread(served: Served) -> None:
    for body in (gzip.compress(question()), b"no gzip at all"):
        status, told = post(served, body, Content_Encoding="gzip")
        assert (status, told["error"]["type"]) == (415, "invalid_request_error")
    assert post(served, question(), Content_Encoding="identity")[0] == 200


def test_what_is_no_http_is_told_to_who_sent_it_and_to_nobody_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    with Served(tmp_path) as served:
        served.add_toy()
        served.start(limits={"body_s": 0.5})
        for pieces, status in (
            ([b"\x16\x03\x01 is TLS\r\n\r\n"], 400),
            ([head + b"zz\r\n"], 400),
            ([head + b"5\r\nmore than five\r\n"], 400),
            ([head, b"zz\r\n"], 408),  # who has asked already waits for a body that never comes
        ):
            with socket.create_connection(address(served), timeout=10) as client:
                for piece in pieces:
                    client.sendall(piece)
                    time.sleep(0.1)
                assert int(client.recv(1000).split()[1]) == status
        assert post(served, question())[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_requests_sent_ahead_on_one_connection_are_not_piled_up(served: Served) -> None:
    assert served.gateway
    gateway = psutil.Process(served.gateway.pid)
    before = gateway.memory_info().rss
    with socket.create_connection(address(served), timeout=1) as client:
        body = question(max_tokens=10_000)
        client.sendall(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        ahead = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 1000
        with pytest.raises(TimeoutError):
            send_until_nobody_reads(client, ahead)
        assert gateway.memory_info().rss - before < 30 << 20
        assert served.health()["ready"] == 1
