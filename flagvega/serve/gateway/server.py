"""The HTTP side of the gateway: its routes, its keys, its start and its end."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import resource
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.log import server_logger

from flagvega.errors import Fault, PreflightError
from flagvega.records import append_json_line, write_json
from flagvega.serve.gateway.connections import Connections
from flagvega.serve.gateway.errors import ApiError
from flagvega.serve.gateway.fleet import Fleet
from flagvega.serve.gateway.forward import Forwarder
from flagvega.serve.gateway.metrics import Metrics
from flagvega.serve.gateway.probe import watch
from flagvega.serve.gateway.settings import Settings
from flagvega.serve.records import FOLDER, RECORD_FILE, STATUS_FILE

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

COMPLETIONS: Final = ("/v1/completions", "/v1/chat/completions")
BACKLOG: Final = 4096
REUSE_S: Final = 3.0
"""A connection to an instance is used again within this; vLLM closes those that are idle for 5 s."""
LAST_WORDS_S: Final = 5.0
"""Answers that are done have so long to reach their clients at the end."""
POLL_S: Final = 0.05


class Gateway:
    """Routes and their handlers."""

    def __init__(self, fleet: Fleet, forwarder: Forwarder, metrics: Metrics) -> None:
        self.fleet, self.forwarder, self.metrics = fleet, forwarder, metrics
        self.settings = fleet.settings
        self.connections: Connections | None = None
        self._api_key = _secret(self.settings.api_key_env)
        self._admin_key = _secret(self.settings.admin_key_env)
        self._since = round(time.time())

    def app(self) -> web.Application:
        """The application."""
        app = web.Application(middlewares=[self._guard()], client_max_size=self.settings.limits.body_bytes)
        for path in COMPLETIONS:
            app.router.add_post(path, self.forwarder.answer)
        app.router.add_get("/v1/models", self._list_models)
        app.router.add_get("/v1/models/{model:.+}", self._show_model)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/drain", self._drain)
        return app

    def _guard(self) -> Any:
        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            if self.connections:
                self.connections.note(request)
            try:
                if request.path.startswith("/v1/") and not _shows(request, self._api_key):
                    raise ApiError(401, "the API key is missing or wrong", "authentication_error", "invalid_api_key")
                return await handler(request)
            except ApiError as error:
                return web.Response(status=error.status, body=error.body, headers=error.headers)
            except web.HTTPException as error:
                told = _in_our_form(error, request, self.settings)
                return web.Response(status=told.status, body=told.body, headers=told.headers)

        return guard

    # ---- what there is ----

    async def _list_models(self, request: web.Request) -> web.Response:
        data = [self._entry(name, limit) for name, limit in self.fleet.models().items()]
        return web.json_response({"object": "list", "data": data})

    async def _show_model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        models = self.fleet.models()
        if name not in models:
            raise ApiError(404, f"there is no model '{name}' here", "not_found_error", "model_not_found", "model")
        return web.json_response(self._entry(name, models[name]))

    def _entry(self, name: str, limit: int | None) -> dict[str, Any]:
        entry = {"id": name, "object": "model", "created": self._since, "owned_by": "flagvega"}
        return entry if limit is None else {**entry, "max_model_len": limit}

    async def _health(self, request: web.Request) -> web.Response:
        ready = len(self.fleet.ready())
        well = ready > 0 and not self.fleet.draining
        return web.json_response(self.state() | {"ready": ready}, status=200 if well else 503)

    def state(self) -> dict[str, Any]:
        """How the gateway and its instances are."""
        word = "draining" if self.fleet.draining else "ready" if self.fleet.ready() else "waiting"
        instances = [
            {
                "id": each.id,
                "role": each.role,
                "state": each.state,
                "trouble": each.trouble,
                "requests_in_flight": len(each.flights),
            }
            for each in self.fleet.instances
        ]
        return {"state": word, "instances": instances}

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self.metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4"})

    # ---- draining ----

    async def _drain(self, request: web.Request) -> web.Response:
        if self._admin_key is None:
            raise ApiError(403, "nobody may: the gateway was given no admin_key_env", "permission_error")
        if not _shows(request, self._admin_key):
            raise ApiError(401, "the admin key is missing or wrong", "authentication_error", "invalid_api_key")
        name = request.query.get("instance")
        if name is None:
            self.fleet.draining = True
        else:
            found = [each for each in self.fleet.instances if str(each.id) == name]
            if not found:
                raise ApiError(404, f"there is no instance '{name}'", "not_found_error")
            found[0].state = "draining"
        return web.json_response(self.state(), status=202)


def _secret(variable: str | None) -> bytes | None:
    return os.environ[variable].encode() if variable else None


def _shows(request: web.Request, key: bytes | None) -> bool:
    """Whether a request shows a key, in a time that tells nothing about it."""
    if key is None:
        return True
    scheme, _, shown = request.headers.get("Authorization", "").partition(" ")
    right = hmac.compare_digest(shown.strip().encode("utf-8", "surrogateescape"), key)
    return right and scheme.lower() == "bearer"


def _in_our_form(error: web.HTTPException, request: web.Request, settings: Settings) -> ApiError:
    if error.status == 413:
        what = f"the body is larger than {settings.limits.body_bytes} bytes"
        return ApiError(413, what, code="request_too_large")
    if error.status == 405:
        return ApiError(405, f"{request.method} is not possible at {request.path}", code="method_not_allowed")
    if error.status == 404:
        return ApiError(404, f"there is nothing at {request.path}", "not_found_error", "not_found")
    return ApiError(error.status, error.text or error.reason)


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; what is being answered is finished first, a second signal ends that too.

    :raises PreflightError: when the address is taken.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    server_logger.addFilter(_is_told)
    fleet = Fleet(settings)
    metrics = Metrics(fleet)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=REUSE_S)
    key = _secret(settings.instance_key_env)
    head = {"Authorization": f"Bearer {key.decode()}"} if key else {}
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), headers=head) as session:
        gateway = Gateway(fleet, Forwarder(fleet, session, metrics), metrics)
        runner = web.AppRunner(
            gateway.app(),
            handler_cancellation=True,
            auto_decompress=False,
            access_log=None,
            keepalive_timeout=settings.limits.idle_s,
            shutdown_timeout=LAST_WORDS_S,
        )
        await runner.setup()
        try:
            await _run(gateway, runner, session)
        finally:
            await runner.cleanup()


def _is_told(record: logging.LogRecord) -> bool:
    """Whether a line belongs in the log: not what clients send that is no HTTP, they are told themselves."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


async def _run(gateway: Gateway, runner: web.AppRunner, session: aiohttp.ClientSession) -> None:
    settings, fleet = gateway.settings, gateway.fleet
    assert runner.server
    gateway.connections = Connections(runner.server, settings.limits)
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_server(gateway.connections, settings.host, settings.port, backlog=BACKLOG)
    except OSError as error:
        fix = "give another port, or end what listens there"
        where = f"{settings.host}:{settings.port}"
        raise PreflightError(Fault(f"cannot listen: {error.strerror}", where, fix)) from error
    host, port = server.sockets[0].getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stopper(stop, fleet))
    async with asyncio.TaskGroup() as tasks:
        rounds = [
            tasks.create_task(watch(each, session, settings.probing, gateway.metrics)) for each in fleet.instances
        ]
        rounds.append(tasks.create_task(gateway.connections.sweep()))
        if settings.run_dir:
            folder = Path(settings.run_dir) / FOLDER
            folder.mkdir(parents=True, exist_ok=True)
            rounds.append(tasks.create_task(_record(gateway, folder, url)))
        print(f"listening at {url}", flush=True)
        await stop.wait()
        fleet.draining = True
        print(f"stopping: {fleet.num_flights} requests are being answered", flush=True)
        await _drained(fleet, stop, settings.waiting.drain_s)
        server.close()
        for task in rounds:
            task.cancel()
    if settings.run_dir:
        write_json(Path(settings.run_dir) / FOLDER / STATUS_FILE, _status(gateway, url) | {"state": "ended"})


def _stopper(stop: asyncio.Event, fleet: Fleet) -> Callable[[], None]:
    """What a signal does: the first drains, the second breaks off."""

    def ask() -> None:
        if stop.is_set():
            for each in fleet.instances:
                each.eject("the gateway was told to stop at once")
        stop.set()

    return ask


async def _drained(fleet: Fleet, stop: asyncio.Event, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while fleet.num_flights and time.monotonic() < deadline:
        await asyncio.sleep(POLL_S)
    for each in fleet.instances:
        if each.flights:
            each.eject("the gateway is stopping")


async def _record(gateway: Gateway, folder: Path, url: str) -> None:
    """Write down how it does, from time to time."""
    while True:
        # The disk may be slow; the answers must not be.
        await asyncio.to_thread(write_json, folder / STATUS_FILE, _status(gateway, url))
        await asyncio.sleep(gateway.settings.record_s)
        await asyncio.to_thread(append_json_line, folder / RECORD_FILE, gateway.metrics.record())


def _status(gateway: Gateway, url: str) -> dict[str, Any]:
    return {"url": url, "pid": os.getpid(), "time": time.time(), **gateway.state()}
