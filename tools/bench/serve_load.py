"""Requests to OpenAI-speaking servers, sent when they are due, and when each of their tokens came."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import mean, median

import aiohttp

from tools.bench.tiny_model import VOCABULARY, word

PATIENCE_S = 15.0
"""Of a client; none of its tokens count then."""
DIALOGUES = 24
"""Beginnings of prompts that requests share."""
START_TOKENS = 256
REST_TOKENS = (10, 300)
OUTPUT_TOKENS = (16, 96)
MEAN_OUTPUT = sum(OUTPUT_TOKENS) / 2
REFUSED = (429, 503)


@dataclass(frozen=True)
class Request:
    """One request of the load."""

    at_s: float
    prompt: str
    num_tokens: int


@dataclass
class Seen:
    """What came of it."""

    request: Request
    begun: float
    status: int = 0
    times: list[float] = field(default_factory=list)
    """Of each token; vLLM puts two into one event when its clients' side is behind."""

    @property
    def whole(self) -> bool:
        """Whether every token came."""
        return len(self.times) == self.request.num_tokens

    @property
    def first_s(self) -> float:
        """Until the first token."""
        return self.times[0] - self.begun

    @property
    def token_s(self) -> float:
        """Between tokens, in the mean."""
        rest = len(self.times) - 1
        return (self.times[-1] - self.times[0]) / rest if rest else 0.0

    def good(self, first_token_s: float, per_token_s: float) -> bool:
        """Whether it was fast enough."""
        return self.whole and self.first_s <= first_token_s and self.token_s <= per_token_s


def make_text(source: random.Random, num_tokens: int) -> str:
    """Words of the tiny model's vocabulary, a token each."""
    return " ".join(word(source.randrange(VOCABULARY)) for _ in range(num_tokens))


def draw(seed: int, name: str, per_s: float, seconds: float) -> list[Request]:
    """Requests that arrive at random, with lengths of all kinds; about half begin as an earlier one did.

    Those of other names come at the same times with the same lengths, but with words of their own: nobody's cache
    helps another.
    """
    source, words = random.Random(seed), random.Random(f"{seed} {name}")
    starts = [make_text(words, START_TOKENS) for _ in range(DIALOGUES)]
    found, at_s = [], 0.0
    while (at_s := at_s + source.expovariate(per_s)) < seconds:
        goes_on, dialogue = source.random() < 0.5, source.randrange(DIALOGUES)
        prompt = f"{starts[dialogue]} " if goes_on else ""
        prompt += make_text(words, source.randint(*REST_TOKENS))
        found.append(Request(at_s, prompt, source.randint(*OUTPUT_TOKENS)))
    return found


def session(limit_s: float | None = None) -> aiohttp.ClientSession:
    """As many connections as are needed."""
    limit = aiohttp.ClientTimeout(total=limit_s)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=limit)


async def send(client: aiohttp.ClientSession, url: str, model: str, request: Request) -> Seen:
    """Send one request; when each token came."""
    seen = Seen(request, time.monotonic())
    body = {"model": model, "prompt": request.prompt, "max_tokens": request.num_tokens}
    body |= {"stream": True, "temperature": 0}
    with suppress(aiohttp.ClientError, OSError, TimeoutError):
        async with client.post(f"{url}/v1/completions", json=body) as response:
            seen.status = response.status
            async for line in response.content:
                if line.startswith(b'data: {"id"'):
                    text = json.loads(line.removeprefix(b"data: "))["choices"][0]["text"]
                    seen.times += [time.monotonic()] * len(text.split())  # a word is a token
    return seen


async def send_all(url: str, model: str, requests: Sequence[Request], most: int) -> tuple[float, list[Seen]]:
    """Send requests when they are due, and refuse those that find ``most`` in flight.

    :returns: when that began, and what came of each.
    """
    in_flight = 0
    async with session(PATIENCE_S) as client:
        began = time.monotonic()

        async def one(request: Request) -> Seen:
            nonlocal in_flight
            await asyncio.sleep(began + request.at_s - time.monotonic())
            if in_flight >= most:
                return Seen(request, time.monotonic(), REFUSED[0])
            in_flight += 1
            try:
                return await send(client, url, model, request)
            finally:
                in_flight -= 1

        return began, await asyncio.gather(*(one(request) for request in requests))


async def keep_busy(url: str, model: str, number: int, seconds: float, requests: Iterator[Request]) -> list[Seen]:
    """``number`` clients that each ask again as soon as they are answered."""
    found: list[Seen] = []
    async with session() as client:
        end = time.monotonic() + seconds

        async def ask() -> None:
            while time.monotonic() < end:
                found.append(await send(client, url, model, next(requests)))

        await asyncio.gather(*(ask() for _ in range(number)))
    return found


def tokens_within(seen: Sequence[Seen], begin: float, end: float) -> int:
    """Tokens that came in a window."""
    return sum(begin <= moment < end for each in seen for moment in each.times)


async def throughput(url: str, model: str, number: int, seconds: float, requests: Iterator[Request]) -> float:
    """Tokens a second with so many clients, once the first two seconds are over."""
    began = time.monotonic()
    seen = await keep_busy(url, model, number, seconds, requests)
    return tokens_within(seen, began + 2, began + seconds) / (seconds - 2)


async def decode_rate(url: str, model: str, number: int) -> float:
    """Tokens a second of so many requests together, once their prompts are read."""
    source = random.Random(number)
    async with session() as client:
        asked = [Request(0, make_text(source, 4), 24) for _ in range(number)]
        seen = await asyncio.gather(*(send(client, url, model, each) for each in asked))
    return number / mean(each.token_s for each in seen)


async def prefill_rate(url: str, model: str) -> float:
    """Tokens of prompts that are read in a second: by how much later longer ones are answered."""
    source = random.Random(url)
    lengths, times = (64, 1024), []
    async with session() as client:
        for length in lengths:
            seen = [await send(client, url, model, Request(0, make_text(source, length), 1)) for _ in range(5)]
            times.append(median(each.first_s for each in seen))
    return (lengths[1] - lengths[0]) / (times[1] - times[0])
