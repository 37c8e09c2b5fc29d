"""What a network reaches of an instance: the paths at which vLLM asks for a key, and two that tell nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from backends.vllm.plugin.flagvega_guard import Guard


def ask(path: str, kind: str = "http") -> tuple[bool, list[dict[str, Any]]]:
    """Whether vLLM saw a request, and what was answered in its place."""
    seen, sent = [], []

    async def engine(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["path"])

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> None:
        return None

    asyncio.run(Guard(engine)({"type": kind, "path": path}, receive, send))
    return bool(seen), sent


@pytest.mark.parametrize("path", ["/health", "/metrics", "/v1/completions", "/v1/models"])
def test_what_a_gateway_asks_is_let_through(path: str) -> None:
    assert ask(path) == (True, [])


@pytest.mark.parametrize("path", ["/invocations", "/tokenize", "/sleep", "/docs", "/v1", "/healthy", "//v1/models", ""])
def test_nothing_else_is(path: str) -> None:
    seen, sent = ask(path)
    assert not seen
    assert sent[0]["status"] == 404


def test_a_websocket_is_closed() -> None:
    assert ask("/realtime", "websocket") == (False, [{"type": "websocket.close"}])
