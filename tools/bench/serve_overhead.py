"""What the gateway costs: one instance asked directly, and through the gateway, in turn.

The instance is the real vLLM on an emulated chip (``--chip cpu``: on the CPU, as fast as it can; then only reported).
Throughput is that of half as many clients as there are slots, with the same lengths both ways. Times to the first token
are of single requests, one directly and one through the gateway after each other. Fails where throughput is below 0.98
of direct, or a first token comes 5 ms later at the median.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from pathlib import Path
from statistics import mean, median
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from hardware.emulated.clock import cpu_s  # noqa: E402
from tools.bench.serve_engines import Engine, free_port, running, started, wait_ready  # noqa: E402
from tools.bench.serve_load import Request, draw, make_text, send, session, throughput  # noqa: E402
from tools.bench.serve_routing import MAX_CPU_SHARE, MAX_LATE_SHARE, CpuTime  # noqa: E402

LEAST_THROUGHPUT = 0.98
MOST_ADDED_S = 0.005
SLOTS = 24


async def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both ways in turn."""
    folder = Path(arguments.folder)
    async with running([(arguments.chip, SLOTS)], folder, arguments.toys) as (engine,):
        settings, port = folder / "gateway.json", free_port()
        instance = {"id": 0, "url": engine.url, "slots": SLOTS}
        settings.write_text(json.dumps({"port": port, "instances": [instance], "probing": {"slow_start_s": 0}}))
        argv = [sys.executable, "-P", "-m", "flagvega.serve", "--config", str(settings)]
        with started(argv, folder / "gateway.log") as pid:
            ways = {"direct": engine.url, "gateway": f"http://127.0.0.1:{port}"}
            for url in ways.values():
                await wait_ready(url, engine.model)
            cpu, before = CpuTime(), engine.lateness()
            rates: dict[str, list[float]] = {way: [] for way in ways}
            took_s = cpu_s([psutil.Process(pid)])
            for seed in range(arguments.rounds):
                for way in sorted(ways, reverse=bool(seed % 2)):
                    requests = iter(draw(seed, way, 1000.0, 2.0))
                    rates[way].append(
                        await throughput(ways[way], engine.model, SLOTS // 2, arguments.seconds, requests)
                    )
                    print(f"  {way:<8} {rates[way][-1]:.1f} tokens/s", flush=True)
            took_s = cpu_s([psutil.Process(pid)]) - took_s
            firsts = await first_tokens(ways, engine, arguments.singles)
            late_s, chip_s = (now - then for now, then in zip(engine.lateness(), before, strict=True))
            return {
                "chip": "toy" if arguments.toys else arguments.chip,
                "tokens_per_s": rates,
                "first_s": {way: median(found) for way, found in firsts.items()},
                "added_s": median(late - soon for soon, late in zip(firsts["direct"], firsts["gateway"], strict=True)),
                "singles": arguments.singles,
                "gateway_cpu_s_per_token": took_s / (sum(rates["gateway"]) * arguments.seconds),
                "cpu_share": cpu.share(),
                "late_share": late_s / chip_s if chip_s else 0.0,
            }


async def first_tokens(ways: dict[str, str], engine: Engine, number: int) -> dict[str, list[float]]:
    """Seconds to the first token of requests that are alone, each way in turn."""
    source = random.Random(1)
    found: dict[str, list[float]] = {way: [] for way in ways}
    async with session() as client:
        for i in range(number):
            for way in sorted(ways, reverse=bool(i % 2)):
                seen = await send(client, ways[way], engine.model, Request(0, make_text(source, 20), 1))
                found[way].append(seen.first_s)
                await asyncio.sleep(source.uniform(0.01, 0.03))
    return found


def judge(row: dict[str, Any]) -> int:
    """Print what was measured; 1 when it is not good enough, or says nothing."""
    ratio = mean(row["tokens_per_s"]["gateway"]) / mean(row["tokens_per_s"]["direct"])
    print(
        f"{row['chip']}: first token after {1e3 * row['first_s']['direct']:.1f} ms, through the gateway "
        f"{1e3 * row['added_s']:.2f} ms later (median of {row['singles']} pairs); "
        f"{1e6 * row['gateway_cpu_s_per_token']:.0f} us of a processor for a token; "
        f"cpu {row['cpu_share']:.0%}, late {row['late_share']:.2%}"
    )
    paced = row["chip"] != "cpu"
    invalid = paced and (row["cpu_share"] > MAX_CPU_SHARE or row["late_share"] > MAX_LATE_SHARE)
    failed = paced and (ratio < LEAST_THROUGHPUT or row["added_s"] >= MOST_ADDED_S)
    print(f"{'INVALID: ' if invalid else 'FAILED: ' if failed else ''}{ratio:.4f} of the direct throughput")
    return int(invalid or failed)


def main() -> int:
    """Measure, print, and keep what came."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chip", default="emu-l")
    parser.add_argument("--toys", action="store_true", help="a paced toy in place of vLLM")
    parser.add_argument("--rounds", type=int, default=4, help="of throughput, both ways each")
    parser.add_argument("--seconds", type=float, default=16.0, help="of each")
    parser.add_argument("--singles", type=int, default=200, help="pairs of single requests")
    parser.add_argument("--output", type=Path, help="JSON lines, appended")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arguments.folder = folder
        row = asyncio.run(compare(arguments))
    if arguments.output:
        with arguments.output.open("a") as file:
            file.write(json.dumps(row) + "\n")
    return judge(row)


if __name__ == "__main__":
    sys.exit(main())
