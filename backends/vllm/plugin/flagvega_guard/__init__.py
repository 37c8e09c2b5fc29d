"""Lets through to vLLM what a gateway asks of it, and nothing else: a middleware of vLLM's server, loaded by its name.

vLLM asks for its key at some paths only; at others, ``/invocations`` among them, whoever reaches it can use the model.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

OPEN = ("/health", "/metrics")
GUARDED = "/v1/"
"""Where vLLM asks for its key."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Guard:
    """Answers 404 to all other paths."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or not."""
        path = scope.get("path", "")
        if scope["type"] == "lifespan" or path in OPEN or path.startswith(GUARDED):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            await send({"type": "websocket.close"})
