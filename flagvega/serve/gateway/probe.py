"""Knows whether an instance serves: ``/health``, and a real completion when it gives no tokens by itself."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any, Final

import aiohttp

from flagvega.serve.gateway.instance import Instance
from flagvega.serve.gateway.metrics import Metrics
from flagvega.serve.gateway.settings import Probing

FIRST_COMPLETION_S: Final = 120.0
"""An engine may compile for its first one."""
MODELS_S: Final = 10.0


class _TroubleError(Exception):
    """Why an instance does not serve."""


class _HungError(_TroubleError):
    """Requests wait at an instance that does nothing: there is no need to look again."""


async def watch(instance: Instance, session: aiohttp.ClientSession, settings: Probing, metrics: Metrics) -> None:
    """Look at an instance again and again: admit it, eject it."""
    while True:
        try:
            await _look(instance, session, settings)
            instance.failures, instance.trouble = 0, ""
        except (_TroubleError, aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            _fail(instance, error, settings, metrics)
        instance.wake.clear()
        try:
            async with asyncio.timeout(settings.interval_s):
                await instance.wake.wait()
        except TimeoutError:
            pass


async def _look(instance: Instance, session: aiohttp.ClientSession, settings: Probing) -> None:
    await _ask(session, f"{instance.url}/health", settings.health_s)
    if instance.state in ("starting", "ejected"):
        # Health alone proves little: some engines answer it, and are ended by their first request.
        models, max_tokens = await _models(instance, session)
        await _complete(instance, session, models[0], max(FIRST_COMPLETION_S, settings.completion_s))
        instance.admit(models, max_tokens)
    elif instance.state == "ready":
        await _look_for_tokens(instance, session, settings)


async def _look_for_tokens(instance: Instance, session: aiohttp.ClientSession, settings: Probing) -> None:
    """Ask for a completion, if there should have been tokens or there were none for long."""
    now = time.monotonic()
    owes = instance.owes_s(now) > settings.stall_s / 2
    if not owes and now - instance.seen_at <= settings.completion_every_s:
        return
    # Where slots are full of answers that come whole, a completion waits for one; full of streams, tokens come.
    limit_s = settings.stall_s / 2 if owes else settings.completion_s + instance.forecast(1, 1, 1, now).first_s
    try:
        await _complete(instance, session, instance.models[0], limit_s)
    except TimeoutError as error:
        if instance.seen_at > now:
            return
        if instance.flights:
            silent_s = time.monotonic() - instance.seen_at
            raise _HungError(f"it hangs: no token for {silent_s:.0f} s, with requests waiting") from error
        raise
    instance.seen_at = time.monotonic()


async def _models(instance: Instance, session: aiohttp.ClientSession) -> tuple[tuple[str, ...], int | None]:
    found = (await _ask(session, f"{instance.url}/v1/models", MODELS_S)).get("data")
    entries = [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
    names = tuple(str(entry["id"]) for entry in entries if "id" in entry)
    if not names:
        raise _TroubleError("it names no model")
    lengths = [entry.get("max_model_len") for entry in entries]
    return names, max((length for length in lengths if isinstance(length, int)), default=None)


async def _complete(instance: Instance, session: aiohttp.ClientSession, model: str, timeout_s: float) -> None:
    # A token's number: there may be no tokenizer.
    question = {"model": model, "prompt": [1], "max_tokens": 1, "temperature": 0}
    answer = await _ask(session, f"{instance.url}/v1/completions", timeout_s, question)
    if not answer.get("choices"):
        raise _TroubleError("a completion without choices")


async def _ask(
    session: aiohttp.ClientSession, url: str, timeout_s: float, question: dict[str, Any] | None = None
) -> dict[str, Any]:
    method = "GET" if question is None else "POST"
    limit = aiohttp.ClientTimeout(total=timeout_s)
    async with session.request(method, url, json=question, timeout=limit, allow_redirects=False) as response:
        body = await response.read()
        if response.status != 200:
            raise _TroubleError(f"{url} answers {response.status}: {body[:200].decode(errors='replace')}")
    if url.endswith("/health"):
        return {}
    value = json.loads(body)
    return value if isinstance(value, dict) else {}


def _fail(instance: Instance, error: Exception, settings: Probing, metrics: Metrics) -> None:
    instance.failures += 1
    instance.trouble = str(error) or type(error).__name__
    gone = isinstance(error, (aiohttp.ClientConnectorError, _HungError))
    if instance.state in ("ready", "draining") and (gone or instance.failures >= settings.failures):
        instance.eject(instance.trouble)
        metrics.ejected.labels(str(instance.id)).inc()
        print(f"instance {instance.id} at {instance.url} is ejected: {instance.trouble}", flush=True)
