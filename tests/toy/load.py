"""A toy of an engine's benchmark, which takes the loads that backends/vllm/bench.py takes: lines in, lines out."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import nullcontext

import aiohttp

CHARACTERS_PER_TOKEN = 4


async def ask(session: aiohttp.ClientSession, load: dict, request: list, began: float) -> dict:
    _, num_input, num_output = request
    body = {"model": load["model"], "prompt": "x" * (CHARACTERS_PER_TOKEN * num_input), "max_tokens": num_output,
            "stream": True}  # fmt: skip
    begun, times, error, instance = time.monotonic(), [], "", ""
    try:
        async with session.post(f"{load['url']}/v1/completions", json=body) as response:
            instance = response.headers.get("X-Flagvega-Instance", "")
            error = "" if response.status == 200 else await response.text()
            async for line in response.content:
                if line.startswith(b"data: {"):
                    times.append(time.monotonic())
    except aiohttp.ClientError as failure:
        error = str(failure) or type(failure).__name__
    if not times and not error:
        error = "no token"
    first, last = (times[0], times[-1]) if times else (begun, begun)
    gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
    return {"begun_s": begun - began, "first_token_s": first - begun, "took_s": last - begun, "gaps_s": gaps,
            "input_tokens": num_input, "output_tokens": len(times), "error": error, "instance": instance}  # fmt: skip


async def run(load: dict) -> dict:
    began, places = time.monotonic(), load["concurrency"] and asyncio.Semaphore(load["concurrency"])
    async with aiohttp.ClientSession() as session:

        async def at_its_time(request: list) -> dict:
            await asyncio.sleep(began + request[0] - time.monotonic())
            async with places or nullcontext():
                return await ask(session, load, request, began)

        answers = await asyncio.gather(*map(at_its_time, load["requests"]))
    return {"answers": answers, "duration_s": time.monotonic() - began}


if __name__ == "__main__":
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(asyncio.run(run(json.loads(line)))), flush=True)
