"""Goodput of unlike instances behind our gateway, and behind vllm-router by each of its policies.

Instances are paced toys (tests/toy/paced.py): slots, seconds a step, tokens of prompt a second; each one's capacity is
measured alone first. Then the same requests, arriving at random at ``--loads`` of the sum of capacities, go through
each router in turn. Goodput counts the tokens, within the measured window, of requests whose first token came within
``--first-token-s`` and whose later ones came at ``--per-token-s`` or faster. Our gateway refuses what it expects to
wait for half of that; vllm-router is given a bound of 1.25 requests a slot. A run in which the host was busier than
70 % (leaving out niced processes) is marked: its numbers say nothing. ``--overhead`` compares one instance directly
and through our gateway instead.

vllm-router has an environment of its own: python -m venv V && V/bin/pip install vllm-router==0.1.17, and then
--router V/bin/vllm-router.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import psutil

ROOT = Path(__file__).resolve().parents[2]
TOY = ROOT / "tests" / "toy" / "paced.py"
OURS = "flagvega"
THEIRS = ("round_robin", "power_of_two", "cache_aware", "random")
WARM_S = 6.0
MOST_BUSY = 70.0
PATIENCE_S = 15.0
"""Of a client; none of its tokens count then."""
DIALOGUES = 24
"""Beginnings of prompts that requests share."""


@dataclass(frozen=True)
class Pace:
    """A toy's capacity, as it is told."""

    slots: int
    step_s: float
    prefill: float


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

    @property
    def whole(self) -> bool:
        """Whether every token came."""
        return len(self.times) == self.request.num_tokens

    def good(self, first_token_s: float, per_token_s: float) -> bool:
        """Whether it was fast enough."""
        if not self.whole or self.times[0] - self.begun > first_token_s:
            return False
        rest = len(self.times) - 1
        return not rest or (self.times[-1] - self.times[0]) / rest <= per_token_s


# ---- processes ----


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def started(argv: Sequence[str], log: Path) -> Iterator[None]:
    """A process, for as long as it is needed."""
    with log.open("ab") as file:
        process = subprocess.Popen(argv, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def router_argv(
    name: str, urls: Sequence[str], paces: Sequence[Pace], rates: Sequence[float], port: int, arguments: Any
) -> list[str]:
    """The command of a router in front of ``urls``."""
    if name != OURS:
        most = round(1.25 * sum(pace.slots for pace in paces))
        words = ["--max-concurrent-requests", str(most), "--queue-size", "0", "--disable-retries"]
        words += ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port()), "--policy", name]
        return [arguments.router, "--worker-urls", *urls, *words, "--log-level", "error"]
    facts = [{"id": i, "url": url, "slots": pace.slots} for i, (url, pace) in enumerate(zip(urls, paces, strict=True))]
    if not arguments.learn:
        for fact, pace, rate in zip(facts, paces, rates, strict=True):
            fact |= {"decode_tokens_per_s": rate, "prefill_tokens_per_s": pace.prefill}
    settings = {
        "port": port,
        "instances": facts,
        "waiting": {"first_token_s": arguments.first_token_s / 2},
        "probing": {"slow_start_s": 0},
    }
    file = Path(arguments.folder) / f"gateway-{port}.json"
    file.write_text(json.dumps(settings))
    return [sys.executable, "-P", "-m", "flagvega.serve", "--config", str(file)]


async def wait_ready(url: str, limit_s: float = 60.0) -> None:
    """Wait until a completion comes."""
    deadline = time.monotonic() + limit_s
    body = {"model": "toy", "prompt": "x", "max_tokens": 1}
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < deadline:
            with suppress(aiohttp.ClientError, OSError):
                async with session.post(f"{url}/v1/completions", json=body) as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.1)
    raise TimeoutError(f"{url} does not answer")


@asynccontextmanager
async def toys(paces: Sequence[Pace], folder: Path) -> AsyncIterator[list[str]]:
    """Toys of these paces; their addresses."""
    with ExitStack() as stack:
        urls = []
        for pace in paces:
            port = free_port()
            words = [
                "--port",
                str(port),
                "--slots",
                str(pace.slots),
                "--step-s",
                str(pace.step_s),
                "--prefill",
                str(pace.prefill),
            ]
            stack.enter_context(started([sys.executable, str(TOY), *words], folder / "toys.log"))
            urls.append(f"http://127.0.0.1:{port}")
        for url in urls:
            await wait_ready(url)
        yield urls


# ---- load ----


def draw(seed: int, per_s: float, seconds: float) -> list[Request]:
    """Requests that arrive at random, with lengths of all kinds; about half begin as an earlier one did."""
    source = random.Random(seed)
    starts = [f"dialogue {seed} {i}: " + "hello " * 200 for i in range(DIALOGUES)]
    found, at_s = [], 0.0
    while (at_s := at_s + source.expovariate(per_s)) < seconds:
        start = source.choice(starts) if source.random() < 0.5 else f"{source.random()} "
        prompt = start + "x" * source.randint(40, 1600)
        found.append(Request(at_s, prompt, source.randint(16, 96)))
    return found


async def send(session: aiohttp.ClientSession, url: str, request: Request) -> Seen:
    """Send one request; when each token came."""
    seen = Seen(request, time.monotonic())
    body = {"model": "toy", "prompt": request.prompt, "max_tokens": request.num_tokens, "stream": True}
    with suppress(aiohttp.ClientError, OSError, TimeoutError):
        async with session.post(f"{url}/v1/completions", json=body) as response:
            seen.status = response.status
            async for line in response.content:
                if line.startswith(b'data: {"id"'):
                    seen.times.append(time.monotonic())
    return seen


async def send_all(url: str, requests: Sequence[Request]) -> tuple[float, list[Seen]]:
    """Send requests when they are due, whatever becomes of those before; when that began, and what came of them."""
    limit = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=limit) as session:
        began = time.monotonic()

        async def one(request: Request) -> Seen:
            await asyncio.sleep(began + request.at_s - time.monotonic())
            return await send(session, url, request)

        return began, await asyncio.gather(*(one(request) for request in requests))


async def keep_busy(url: str, number: int, seconds: float, seed: int) -> list[Seen]:
    """``number`` clients that each ask again as soon as they are answered."""
    requests = iter(draw(seed, 1000.0, 60.0))
    found: list[Seen] = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        end = time.monotonic() + seconds

        async def client() -> None:
            while time.monotonic() < end:
                found.append(await send(session, url, next(requests)))

        await asyncio.gather(*(client() for _ in range(number)))
    return found


def tokens_within(seen: Sequence[Seen], begin: float, end: float) -> int:
    """Tokens that came in a window."""
    return sum(begin <= moment < end for each in seen for moment in each.times)


async def capacity(url: str, pace: Pace, seconds: float, seed: int) -> float:
    """Tokens a second of an instance alone, with more clients than slots."""
    began = time.monotonic()
    seen = await keep_busy(url, 2 * pace.slots, seconds, seed)
    return tokens_within(seen, began + 2, began + seconds) / (seconds - 2)


# ---- what is compared ----


async def compare(arguments: argparse.Namespace, paces: Sequence[Pace]) -> list[dict[str, Any]]:
    """Every router at every load with every seed."""
    folder = Path(arguments.folder)
    rows = []
    for seed in arguments.seeds:
        async with toys(paces, folder) as urls:
            pairs = list(zip(urls, paces, strict=True))
            rates = [await capacity(url, pace, arguments.alone_s, seed) for url, pace in pairs]
        print(f"seed {seed}: alone {[round(rate) for rate in rates]} tokens/s, together {sum(rates):.0f}", flush=True)
        for load in arguments.loads:
            requests = draw(seed, load * sum(rates) / 56, WARM_S + arguments.seconds)
            for name in arguments.policies:
                row = await measure(name, requests, paces, rates, arguments)
                row = {"seed": seed, "load": load, "capacity": sum(rates), **row}
                rows.append(row)
                print(show(row), flush=True)
    return rows


async def measure(
    name: str, requests: Sequence[Request], paces: Sequence[Pace], rates: Sequence[float], arguments: argparse.Namespace
) -> dict[str, Any]:
    """One router under one load, in front of fresh toys."""
    port = free_port()
    async with toys(paces, Path(arguments.folder)) as urls:
        argv = router_argv(name, urls, paces, rates, port, arguments)
        with started(argv, Path(arguments.folder) / f"{name}.log"):
            await wait_ready(f"http://127.0.0.1:{port}")
            await asyncio.sleep(2.5)
            psutil.cpu_times_percent()
            began, seen = await send_all(f"http://127.0.0.1:{port}", requests)
            busy = busy_percent()
    good = [each for each in seen if each.good(arguments.first_token_s, arguments.per_token_s)]
    window = began + WARM_S, began + WARM_S + arguments.seconds
    firsts = sorted(each.times[0] - each.begun for each in seen if each.whole)
    return {
        "policy": name,
        "goodput": tokens_within(good, *window) / arguments.seconds,
        "throughput": tokens_within(seen, *window) / arguments.seconds,
        "asked": len(seen),
        "good": len(good),
        "refused": sum(each.status in (429, 503) for each in seen),
        "first_p50_s": median(firsts) if firsts else None,
        "first_p99_s": firsts[int(0.99 * (len(firsts) - 1))] if firsts else None,
        "busy": busy,
    }


def show(row: dict[str, Any]) -> str:
    """A row, to be read."""
    mark = "" if row["busy"] <= MOST_BUSY else f"  INVALID: host {row['busy']:.0f} % busy"
    share = row["goodput"] / row["capacity"]
    return (
        f"  load {row['load']:.2f} {row['policy']:<13} goodput {row['goodput']:7.1f} ({share:.3f} of capacity), "
        f"all {row['throughput']:7.1f}, good {row['good']}/{row['asked']}, refused {row['refused']}, "
        f"first token {row['first_p50_s'] or 0:.3f} / {row['first_p99_s'] or 0:.3f} s{mark}"
    )


async def overhead(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One instance, directly and through our gateway, in turn."""
    pace, port, rows = Pace(16, 0.04, 20_000), free_port(), []
    async with toys([pace], Path(arguments.folder)) as urls:
        with started(router_argv(OURS, urls, [pace], [400.0], port, arguments), Path(arguments.folder) / "ours.log"):
            ways = {"direct": urls[0], "gateway": f"http://127.0.0.1:{port}"}
            await wait_ready(ways["gateway"])
            for seed in arguments.seeds:
                for i, (way, url) in enumerate(ways.items()):
                    psutil.cpu_times_percent()
                    rate = await capacity(url, Pace(pace.slots // 2, 0, 0), arguments.alone_s, 2 * seed + i)
                    firsts = [each.times[0] - each.begun for each in await keep_alone(url, arguments.alone_s)]
                    row = {"way": way, "seed": seed, "tokens_per_s": rate, "first_s": median(firsts)}
                    rows.append(row | {"busy": busy_percent(), "requests": len(firsts)})
                    print(rows[-1], flush=True)
    mean = {way: median(row["tokens_per_s"] for row in rows if row["way"] == way) for way in ways}
    first = {way: median(row["first_s"] for row in rows if row["way"] == way) for way in ways}
    added_ms = 1000 * (first["gateway"] - first["direct"])
    print(f"throughput {mean['gateway'] / mean['direct']:.4f} of direct; first token {added_ms:.2f} ms later (median)")
    return rows


def busy_percent() -> float:
    """How busy the host was since the last call, with what is niced left out."""
    times = psutil.cpu_times_percent()
    return float(times.user + times.system)


async def keep_alone(url: str, seconds: float) -> list[Seen]:
    """One request after the other, each to an engine that has nothing else to do."""
    found = []
    async with aiohttp.ClientSession() as session:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found.append(await send(session, url, Request(0, f"{random.random()}", 1)))
            await asyncio.sleep(0.02)
    return found


def read_paces(text: str) -> list[Pace]:
    """``slots:step_s:prefill`` of each instance, with commas between."""
    words = (entry.split(":") for entry in text.split(","))
    return [Pace(int(slots), float(step_s), float(prefill)) for slots, step_s, prefill in words]


def main() -> None:
    """Measure, print, and keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paces", default="24:0.04:12000,12:0.06:6000,8:0.08:3000", help="slots:step_s:prefill, ...")
    parser.add_argument("--policies", nargs="+", default=[OURS, *THEIRS])
    parser.add_argument("--router", default=shutil.which("vllm-router") or "vllm-router")
    parser.add_argument("--loads", nargs="+", type=float, default=[0.8, 1.1], help="of the sum of capacities")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--seconds", type=float, default=20.0, help="of the measured window")
    parser.add_argument("--alone-s", type=float, default=8.0, help="for each instance's capacity")
    parser.add_argument("--first-token-s", type=float, default=2.0)
    parser.add_argument("--per-token-s", type=float, default=0.12)
    parser.add_argument("--learn", action="store_true", help="our gateway is not told the capacities")
    parser.add_argument("--overhead", action="store_true")
    parser.add_argument("--output", type=Path, help="JSON of all rows")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arguments.folder = folder
        paces = read_paces(arguments.paces)
        rows = asyncio.run(overhead(arguments) if arguments.overhead else compare(arguments, paces))
    if arguments.output:
        about = {"paces": [asdict(pace) for pace in paces], "first_token_s": arguments.first_token_s}
        about |= {"per_token_s": arguments.per_token_s, "seconds": arguments.seconds, "learn": arguments.learn}
        arguments.output.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
