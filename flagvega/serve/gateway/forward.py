"""Passes a question on to an instance and its answer back; tries another one as long as the client has seen nothing."""

from __future__ import annotations

import asyncio
import json
import os
import time
import uuid
from typing import Final

import aiohttp
from aiohttp import web

from flagvega.serve.gateway.errors import ApiError, overloaded, unavailable
from flagvega.serve.gateway.fleet import Fleet
from flagvega.serve.gateway.instance import Flight, Instance
from flagvega.serve.gateway.metrics import Metrics
from flagvega.serve.gateway.question import Question, read_question
from flagvega.serve.gateway.stream import StreamReader

FULL: Final = frozenset({429, 503})
"""An instance that takes nothing more for now."""
BROKEN: Final = frozenset({500, 502, 504})
CLIENT_LEFT: Final = 499
"""As nginx has it; nobody reads it."""
INSTANCE_HEADER: Final = "X-Flagvega-Instance"
REQUEST_HEADER: Final = "X-Request-Id"
MAX_REQUEST_ID: Final = 128


class _LostError(Exception):
    """An instance gave no answer, and the client has seen none of it."""

    def __init__(self, answer: ApiError, full: bool = False) -> None:
        super().__init__(answer.message)
        self.answer, self.full = answer, full


class Forwarder:
    """What questions go through."""

    def __init__(self, fleet: Fleet, session: aiohttp.ClientSession, metrics: Metrics) -> None:
        self.fleet, self.session, self.metrics = fleet, session, metrics
        self.limits, self.waiting = fleet.settings.limits, fleet.settings.waiting
        variable = fleet.settings.instance_key_env
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if variable:
            self._headers["Authorization"] = f"Bearer {os.environ[variable]}"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer a request for a completion."""
        try:
            question = read_question(request.path, await self._read_body(request))
            self.fleet.check(question)
            return await self._try(request, question)
        except ApiError as error:
            self.metrics.refused.labels(error.code or str(error.status)).inc()
            raise
        except asyncio.CancelledError:
            self.metrics.left.inc()
            raise

    async def _read_body(self, request: web.Request) -> bytes:
        if (request.content_length or 0) > self.limits.body_bytes:
            raise web.HTTPRequestEntityTooLarge(self.limits.body_bytes, request.content_length or 0)
        try:
            async with asyncio.timeout(self.limits.body_s):
                return await request.read()
        except TimeoutError as error:
            raise ApiError(408, f"the body was not there within {self.limits.body_s:g} s") from error

    async def _try(self, request: web.Request, question: Question) -> web.StreamResponse:
        tried: set[int] = set()
        for attempt in range(1, self.waiting.attempts + 1):
            instance, prompt_tokens = self.fleet.choose(question, tried)
            try:
                return await self._ask(request, question, instance, prompt_tokens)
            except _LostError as error:
                tried.add(instance.id)
                instance.wake.set()
                others = [each for each in self.fleet.ready() if each.id not in tried]
                if attempt == self.waiting.attempts or (error.full and not others):
                    raise error.answer from error
                self.metrics.retries.labels(str(instance.id)).inc()
        raise AssertionError("at least one attempt")

    async def _ask(
        self, request: web.Request, question: Question, instance: Instance, prompt_tokens: float
    ) -> web.StreamResponse:
        exchange = _Exchange(request, question, instance, self)
        flight: Flight | None = None
        try:
            async with asyncio.timeout(None) as scope:
                flight = self.fleet.begin(instance, question, prompt_tokens, scope)
                return await exchange.run(flight, self._headers)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if request.transport is None or request.transport.is_closing():
                self.metrics.left.inc()
                return exchange.response or web.Response(status=CLIENT_LEFT)
            what = str(error) or type(error).__name__
            if exchange.response is None:
                raise _LostError(unavailable(f"instance {instance.id} did not answer: {what}")) from error
            return await exchange.break_off(f"instance {instance.id} broke off: {instance.trouble or what}")
        finally:
            if flight is not None:
                del instance.flights[flight]


class _Exchange:
    """One question at one instance."""

    def __init__(self, request: web.Request, question: Question, instance: Instance, forwarder: Forwarder) -> None:
        self.request, self.question, self.instance = request, question, instance
        self.fleet, self.session, self.metrics = forwarder.fleet, forwarder.session, forwarder.metrics
        self.waiting = forwarder.waiting
        self.response: web.StreamResponse | None = None
        """What the client has seen the beginning of."""
        self.prompt_tokens = 0

    async def run(self, flight: Flight, headers: dict[str, str]) -> web.StreamResponse:
        """Ask, and pass the answer back."""
        silence_s = self.waiting.silence_s if self.question.stream else None
        limit = aiohttp.ClientTimeout(total=None, sock_connect=self.waiting.connect_s, sock_read=silence_s)
        name = self.request.headers.get(REQUEST_HEADER, "")[:MAX_REQUEST_ID] or uuid.uuid4().hex
        async with self.session.post(
            self.instance.url + self.question.path,
            data=self.question.body,
            headers={**headers, REQUEST_HEADER: name},
            timeout=limit,
            allow_redirects=False,
        ) as upstream:
            if upstream.status in FULL | BROKEN:
                raise _LostError(
                    _refusal(upstream.status, await upstream.read(), self.instance), upstream.status in FULL
                )
            about = {INSTANCE_HEADER: str(self.instance.id), REQUEST_HEADER: name}
            if upstream.status == 200 and upstream.content_type == "text/event-stream":
                return await self._pass_stream(upstream, flight, about)
            body = await upstream.read()
            if upstream.status == 200:
                self._count(flight, _usage(body))
            self.metrics.answered(self.instance, upstream.status, self.prompt_tokens, flight.num_tokens)
            kind = upstream.headers.get("Content-Type", "application/json")
            return web.Response(status=upstream.status, body=body, headers={**about, "Content-Type": kind})

    async def _pass_stream(
        self, upstream: aiohttp.ClientResponse, flight: Flight, about: dict[str, str]
    ) -> web.StreamResponse:
        reader = StreamReader()
        held = b""
        async for chunk in upstream.content.iter_any():
            now = time.monotonic()
            flight.note(reader.feed(chunk), now)
            self.instance.seen_at = now
            if self.response is None:
                held += chunk
                if not reader.begun and not reader.finished:
                    if reader.error:
                        raise _LostError(_refusal(502, json.dumps({"error": reader.error}).encode(), self.instance))
                    continue
                chunk = held
                headers = {**about, "Content-Type": upstream.headers["Content-Type"], "Cache-Control": "no-cache"}
                self.response = web.StreamResponse(headers=headers)
                await self.response.prepare(self.request)
            await self._write(chunk)
        if self.response is None or not reader.finished:
            raise aiohttp.ClientPayloadError("the stream ended too early")
        self._count(flight, reader.usage())
        self.metrics.answered(self.instance, 200, self.prompt_tokens, flight.num_tokens)
        await self.response.write_eof()
        return self.response

    async def _write(self, chunk: bytes) -> None:
        """Pass on to the client; one that takes nothing for long is let go, as if it had left."""
        assert self.response is not None
        try:
            async with asyncio.timeout(self.waiting.silence_s):
                await self.response.write(chunk)
        except TimeoutError:
            if self.request.transport is not None:
                self.request.transport.abort()
            raise

    async def break_off(self, what: str) -> web.StreamResponse:
        """End an answer that cannot go on; nothing of it is repeated."""
        assert self.response is not None
        self.metrics.broken.labels(str(self.instance.id)).inc()
        self.metrics.requests.labels(str(self.instance.id), "broken").inc()
        self.instance.wake.set()
        error = ApiError(502, what, "server_error", "instance_lost")
        # A blank line first: the last event may have been cut in the middle.
        await self._write(b"\n\ndata: " + error.body + b"\n\n")
        await self.response.write_eof()
        return self.response

    # ---- what is learned ----

    def _count(self, flight: Flight, usage: dict[str, object]) -> None:
        """Learn from an answer that is whole; what the engine counted goes before what was seen."""
        now = time.monotonic()
        prompt, output = usage.get("prompt_tokens"), usage.get("completion_tokens")
        self.prompt_tokens = prompt if isinstance(prompt, int) else round(self.fleet.prompt_tokens(self.question))
        self.instance.seen_at = now
        if isinstance(output, int):
            flight.num_tokens = output
        if not flight.num_tokens:
            return
        self.instance.learn(flight, flight.num_tokens, now)
        self.fleet.learn(self.question, self.prompt_tokens, flight.num_tokens)
        if flight.first_at and flight.last_at:
            rest = flight.num_tokens / flight.width - 1
            token_s = (flight.last_at - flight.first_at) / rest if rest >= 1 else None
            self.metrics.timed(self.instance, flight.first_at - flight.started, token_s)


def _usage(body: bytes) -> dict[str, object]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    usage = value.get("usage") if isinstance(value, dict) else None
    return usage if isinstance(usage, dict) else {}


def _refusal(status: int, body: bytes, instance: Instance) -> ApiError:
    """What an instance says it cannot do, in OpenAI's form whatever its own is."""
    try:
        error = json.loads(body)["error"]
        said = str(error["message"])
    except (ValueError, KeyError, TypeError):
        said = body[:200].decode(errors="replace").strip() or f"status {status}"
    what = f"instance {instance.id}: {said}"
    if status == 429:
        return overloaded(what, 1)
    return unavailable(what) if status == 503 else ApiError(502, what, "server_error", "instance_failed")
