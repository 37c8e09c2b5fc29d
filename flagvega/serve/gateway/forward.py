"""Passes a question on to an instance and its answer back; tries another one as long as the client has seen nothing."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import aiohttp
from aiohttp import web

from flagvega.serve.gateway.errors import ApiError, overloaded, unavailable
from flagvega.serve.gateway.fleet import Fleet
from flagvega.serve.gateway.handover import ask_to_read, ask_to_write
from flagvega.serve.gateway.instance import Flight, Instance
from flagvega.serve.gateway.metrics import Metrics
from flagvega.serve.gateway.question import Question, read_question
from flagvega.serve.gateway.routes import Route
from flagvega.serve.gateway.stream import StreamReader

FULL: Final = frozenset({429, 503})
"""An instance that takes nothing more for now."""
BROKEN: Final = frozenset({500, 502, 504})
CLIENT_LEFT: Final = 499
"""As nginx has it; nobody reads it."""
INSTANCE_HEADER: Final = "X-Flagvega-Instance"
READER_HEADER: Final = "X-Flagvega-Prefill"
"""The instance that read the prompt, where it is another one."""
REQUEST_HEADER: Final = "X-Request-Id"
MAX_REQUEST_ID: Final = 128


class _LostError(Exception):
    """An instance gave no answer, and the client has seen none of it."""

    def __init__(self, instance: Instance, answer: ApiError, full: bool = False) -> None:
        super().__init__(answer.message)
        self.instance, self.answer, self.full = instance, answer, full


class Forwarder:
    """What questions go through."""

    def __init__(self, fleet: Fleet, session: aiohttp.ClientSession, metrics: Metrics) -> None:
        self.fleet, self.session, self.metrics = fleet, session, metrics
        self.limits, self.waiting = fleet.settings.limits, fleet.settings.waiting
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}

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
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise ApiError(415, "send the body as it is, without Content-Encoding")  # engines take no other either
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
            route = self.fleet.choose(question, tried)
            try:
                return await self._ask(request, question, route)
            except _LostError as error:
                tried.add(error.instance.id)
                error.instance.wake.set()
                others = [each for each in self.fleet.ready() if each.id not in tried]
                if attempt == self.waiting.attempts or (error.full and not others):
                    raise error.answer from error
                self.metrics.retries.labels(str(error.instance.id)).inc()
        raise AssertionError("at least one attempt")

    async def _ask(self, request: web.Request, question: Question, route: Route[Instance]) -> web.StreamResponse:
        instance = route.writer
        exchange = _Exchange(request, question, route, self)
        try:
            async with asyncio.timeout(None) as scope:
                if route.reader:
                    with self.fleet.flight(instance, question, route.tokens, scope):  # its place there
                        exchange.question = await self._read(exchange, route.reader, route.reader_tokens)
                with self.fleet.flight(instance, question, route.tokens, scope) as flight:
                    return await exchange.run(flight, self._headers)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if request.transport is None or request.transport.is_closing():
                self.metrics.left.inc()
                return exchange.response or web.Response(status=CLIENT_LEFT)
            what = str(error) or type(error).__name__
            if exchange.response is None:
                raise _LostError(instance, unavailable(f"instance {instance.id} did not answer: {what}")) from error
            return await exchange.break_off(f"instance {instance.id} broke off: {instance.trouble or what}")

    async def _read(self, exchange: _Exchange, reader: Instance, tokens: float) -> Question:
        """Have the prompt read by another instance than the one that answers; the question for the latter."""
        try:
            async with asyncio.timeout(None) as scope:
                with self.fleet.flight(reader, exchange.question, tokens, scope, reads=True) as flight:
                    return await exchange.read(reader, flight, self._headers)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            what = f"instance {reader.id} did not read the prompt: {str(error) or type(error).__name__}"
            raise _LostError(reader, unavailable(what)) from error


class _Exchange:
    """One question on its route."""

    def __init__(self, request: web.Request, question: Question, route: Route[Instance], forwarder: Forwarder) -> None:
        self.request, self.question, self.instance = request, question, route.writer
        self.fleet, self.session, self.metrics = forwarder.fleet, forwarder.session, forwarder.metrics
        self.waiting = forwarder.waiting
        self.response: web.StreamResponse | None = None
        """What the client has seen the beginning of."""
        self.reader: Instance | None = None
        """Who has read the prompt, where the instance does not."""
        self.prompt_tokens = 0
        self.began = time.monotonic()
        self.name = request.headers.get(REQUEST_HEADER, "")[:MAX_REQUEST_ID] or uuid.uuid4().hex

    @asynccontextmanager
    async def _post(
        self, instance: Instance, body: bytes, headers: dict[str, str], silence_s: float | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """What an instance answers.

        :raises _LostError: when it is full or broken.
        """
        limit = aiohttp.ClientTimeout(total=None, sock_connect=self.waiting.connect_s, sock_read=silence_s)
        async with self.session.post(
            instance.url + self.question.path,
            data=body,
            headers={**headers, REQUEST_HEADER: self.name},
            timeout=limit,
            allow_redirects=False,
        ) as upstream:
            if upstream.status in FULL | BROKEN:
                refusal = _refusal(upstream.status, await upstream.read(), instance)
                raise _LostError(instance, refusal, upstream.status in FULL)
            yield upstream

    async def read(self, reader: Instance, flight: Flight, headers: dict[str, str]) -> Question:
        """Have the prompt read; the question for the instance that answers."""
        async with self._post(reader, ask_to_read(self.question), headers, self.waiting.silence_s) as upstream:
            answer = await upstream.read()
        if upstream.status != 200:
            return self.question  # it is wrong: the other one says so to the client
        now = time.monotonic()
        flight.note(1, now)
        reader.seen_at = now
        reader.learn(flight, 1, now)
        handed = ask_to_write(self.question, answer)
        if handed is not self.question:
            tokens = _usage(answer).get("prompt_tokens")
            self.metrics.read(reader, self.instance, tokens if isinstance(tokens, int) else 0, now - flight.started)
            self.reader = reader
        return handed

    async def run(self, flight: Flight, headers: dict[str, str]) -> web.StreamResponse:
        """Ask, and pass the answer back."""
        silence_s = self.waiting.silence_s if self.question.stream else None
        async with self._post(self.instance, self.question.body, headers, silence_s) as upstream:
            about = {INSTANCE_HEADER: str(self.instance.id), REQUEST_HEADER: self.name}
            if self.reader:
                about[READER_HEADER] = str(self.reader.id)
            if upstream.status == 200 and upstream.content_type == "text/event-stream":
                return await self._pass_stream(upstream, flight, about)
            body = await upstream.read()
            if upstream.status == 200:
                self._count(flight, _usage(body))
            self._answered(upstream.status, flight)
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
            passed = reader.whole
            if self.response is None:
                held += passed
                if not reader.begun and reader.error is not None:
                    refusal = _refusal(502, json.dumps({"error": reader.error}).encode(), self.instance)
                    raise _LostError(self.instance, refusal)
                if not reader.begun and not reader.finished:
                    continue
                passed = held
                headers = {**about, "Content-Type": upstream.headers["Content-Type"], "Cache-Control": "no-cache"}
                self.response = web.StreamResponse(headers=headers)
                await self.response.prepare(self.request)
            if passed:
                await self._write(passed)
            if reader.error is not None:
                raise aiohttp.ClientPayloadError(str(reader.error.get("message")))
        if self.response is None or not reader.finished:
            raise aiohttp.ClientPayloadError("the stream ended too early")
        self._count(flight, reader.usage())
        self._answered(200, flight)
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
        await self._write(b"data: " + error.body + b"\n\n")
        await self.response.write_eof()
        return self.response

    # ---- what is learned ----

    def _answered(self, status: int, flight: Flight) -> None:
        """An answer is whole; a prompt counts where it was read."""
        self.metrics.answered(self.instance, status, 0 if self.reader else self.prompt_tokens, flight.num_tokens)

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
            self.metrics.timed(self.instance, flight.first_at - self.began, token_s)


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
