"""Clients' connections: how many there may be, and how long one may say nothing."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from flagvega.serve.gateway.settings import Limits

SWEEP_S: Final = 1.0


class Connections:
    """Makes the protocol of each new connection, and closes those that say nothing."""

    def __init__(self, server: web.Server, limits: Limits) -> None:
        self._server, self._limits = server, limits
        self._silent: dict[RequestHandler, float] = {}
        """Connections that have asked nothing yet, and since when they are there."""

    def __call__(self) -> asyncio.Protocol:
        """The protocol of a new connection."""
        handler = self._server()
        self._silent[handler] = time.monotonic()
        if len(self._server.connections) >= self._limits.connections:
            asyncio.get_running_loop().call_soon(self._close, handler)
        return handler

    def note(self, request: web.BaseRequest) -> None:
        """A request has come whole."""
        self._silent.pop(request.protocol, None)

    async def sweep(self) -> None:
        """Close, again and again, what has been silent for too long, and forget what is gone."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now = time.monotonic()
            old = [handler for handler, since in self._silent.items() if now - since > SWEEP_S]
            for handler in old:
                if handler.transport is None:
                    del self._silent[handler]
                elif now - self._silent[handler] > self._limits.header_s:
                    self._close(handler)

    def _close(self, handler: RequestHandler) -> None:
        self._silent.pop(handler, None)
        if handler.transport is not None:
            handler.transport.close()
