"""Goodput of unlike instances behind our gateway, and behind vllm-router by each of its policies.

Instances are the real vLLM on emulated chips (``--toys``: paced toys, for a quick look). Each one is measured
alone first: what it gives to twice as many clients as it has slots. Then requests that arrive at random, at ``--loads``
of the sum of capacities, go through each router in turn. Goodput counts the tokens, within the measured window, of
requests whose first token came within ``--first-token-s`` and whose later ones came at ``--per-token-s`` or faster.

A router of theirs is asked for no more than so many requests a slot at once (1, or ``power_of_two:1.25``) and the rest
is refused: by the bench itself, since vllm-router's own bound does not act on streams. Our gateway refuses what it
expects to wait for longer than a part of the target (``flagvega:0.75``); ``flagvega-untold:0.75`` is the same without
being told what the instances can do. A run counts when its processes took less than
70 % of the host's CPUs and the emulated chips were late by less than 2 %. Rows are appended to ``--output``.
``--judge`` reads them, and fails where the gateway gave less than 0.95 of the sum of capacities (of what was asked,
where that is less), or was not ahead of each policy, told or untold.

vllm-router has an environment of its own: python -m venv V && V/bin/pip install vllm-router==0.1.17, and then
--router V/bin/vllm-router.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from hardware.emulated.clock import cpu_s  # noqa: E402
from tools.bench.serve_engines import Engine, free_port, running, started, wait_ready  # noqa: E402
from tools.bench.serve_load import (  # noqa: E402
    MEAN_OUTPUT,
    REFUSED,
    decode_rate,
    draw,
    prefill_rate,
    send_all,
    throughput,
    tokens_within,
)

OURS = "flagvega"
UNTOLD = f"{OURS}-untold"
THEIRS = ("round_robin:1", "power_of_two:1", "cache_aware:1")
WARM_S = 8.0
MAX_CPU_SHARE = 0.7
MAX_LATE_SHARE = 0.02
MAX_SENT_LATE_S = 0.5
LEAST_SHARE = 0.95
JUDGED = f"{OURS}:0.75"
JUDGED_UNTOLD = f"{UNTOLD}:0.75"
ALL = 1_000_000


@dataclass(frozen=True)
class Able:
    """What an engine gave alone."""

    tokens_per_s: float
    """With prompts of all kinds."""
    decode_tokens_per_s: float
    prefill_tokens_per_s: float


class CpuTime:
    """Of this process and all that it started, as a share of the host."""

    def __init__(self) -> None:
        self._wall_s, self._cpu_s = time.monotonic(), self._used_s()

    def share(self) -> float:
        """Since the creation of this object."""
        wall_s = time.monotonic() - self._wall_s
        return (self._used_s() - self._cpu_s) / wall_s / (psutil.cpu_count() or 1)

    def _used_s(self) -> float:
        this = psutil.Process()
        return cpu_s([this, *this.children(recursive=True)])


async def measure_alone(engine: Engine, seconds: float) -> Able:
    """An engine's capacity, nobody else being asked."""
    requests = iter(draw(0, f"alone {engine.url}", 1000.0, 2.0))
    decode = await decode_rate(engine.url, engine.model, engine.slots)
    prefill = await prefill_rate(engine.url, engine.model)
    tokens = await throughput(engine.url, engine.model, 2 * engine.slots, seconds, requests)
    return Able(tokens, decode, prefill)


def router_argv(name: str, engines: Sequence[Engine], able: Sequence[Able], port: int, arguments: Any) -> list[str]:
    """The command of a router in front of engines."""
    policy, _, number = name.partition(":")
    if policy not in (OURS, UNTOLD):
        words = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port())]
        words += ["--policy", policy]
        # Theirs are for hundreds of requests; with these, unlike loads are noticed at this scale too.
        words += ["--balance-abs-threshold", "4", "--balance-rel-threshold", "1.2", "--disable-retries"]
        return [arguments.router, "--worker-urls", *(each.url for each in engines), *words, "--log-level", "error"]
    facts: list[dict[str, Any]] = [{"id": i, "url": each.url, "slots": each.slots} for i, each in enumerate(engines)]
    if policy == OURS:
        for fact, alone in zip(facts, able, strict=True):
            fact["decode_tokens_per_s"] = alone.decode_tokens_per_s
            fact["prefill_tokens_per_s"] = alone.prefill_tokens_per_s
    settings = {
        "port": port,
        "instances": facts,
        "waiting": {"first_token_s": float(number) * arguments.first_token_s},
        "probing": {"slow_start_s": 0},
    }
    file = Path(arguments.folder) / f"gateway-{port}.json"
    file.write_text(json.dumps(settings))
    return [sys.executable, "-P", "-m", "flagvega.serve", "--config", str(file)]


async def compare(arguments: argparse.Namespace) -> None:
    """Every router at every load with every seed."""
    async with running(read_chips(arguments.chips), Path(arguments.folder), arguments.toys) as engines:
        able = [await measure_alone(each, arguments.alone_s) for each in engines]
        capacity = sum(each.tokens_per_s for each in able)
        print(f"alone {[round(each.tokens_per_s) for each in able]} tokens/s, together {capacity:.0f}", flush=True)
        for seed in arguments.seeds:
            for load in arguments.loads:
                for name in arguments.policies:
                    row = {"chips": arguments.chips, "toys": arguments.toys, "seed": seed, "load": load}
                    row |= {"capacity": capacity, "alone": [each.tokens_per_s for each in able]}
                    row |= await measure(name, seed, load * capacity / MEAN_OUTPUT, engines, able, arguments)
                    print(show(row), flush=True)
                    keep(row, arguments.output)


async def measure(
    name: str, seed: int, per_s: float, engines: Sequence[Engine], able: Sequence[Able], arguments: argparse.Namespace
) -> dict[str, Any]:
    """One router under one load."""
    port, model = free_port(), engines[0].model
    requests = draw(seed, f"{name} {per_s}", per_s, WARM_S + arguments.seconds)
    policy, _, number = name.partition(":")
    most = ALL if policy in (OURS, UNTOLD) else round(float(number) * sum(each.slots for each in engines))
    argv = router_argv(name, engines, able, port, arguments)
    with started(argv, Path(arguments.folder) / f"{name}.log"):
        url = f"http://127.0.0.1:{port}"
        await wait_ready(url, model)
        await asyncio.sleep(2.5)
        before, cpu = lateness(engines), CpuTime()
        began, seen = await send_all(url, model, requests, most)
        cpu_share = cpu.share()
    late_s, chip_s = (now - then for now, then in zip(lateness(engines), before, strict=True))
    good = [each for each in seen if each.good(arguments.first_token_s, arguments.per_token_s)]
    window = began + WARM_S, began + WARM_S + arguments.seconds
    asked = sum(each.num_tokens for each in requests if each.at_s >= WARM_S) / arguments.seconds
    firsts = sorted(each.first_s for each in seen if each.whole)
    return {
        "policy": name,
        "goodput": tokens_within(good, *window) / arguments.seconds,
        "throughput": tokens_within(seen, *window) / arguments.seconds,
        "asked_tokens_per_s": asked,
        "requests": len(seen),
        "good": len(good),
        "refused": sum(each.status in REFUSED for each in seen),
        "cut": sum(each.status == 200 and not each.whole for each in seen),
        "late_first": sum(each.whole and each.first_s > arguments.first_token_s for each in seen),
        "slow_tokens": sum(each.whole and each.token_s > arguments.per_token_s for each in seen),
        "sent_late_s": max(each.begun - began - each.request.at_s for each in seen),
        "first_p50_s": median(firsts) if firsts else None,
        "first_p99_s": firsts[int(0.99 * (len(firsts) - 1))] if firsts else None,
        "token_p50_s": median(each.token_s for each in seen if each.whole) if firsts else None,
        "cpu_share": cpu_share,
        "late_share": late_s / chip_s if chip_s else 0.0,
    }


def lateness(engines: Sequence[Engine]) -> tuple[float, float]:
    """By how much the host was late so far, and the chips' time, of all engines."""
    counts = [each.lateness() for each in engines]
    return sum(late for late, _ in counts), sum(chip for _, chip in counts)


def why_invalid(row: dict[str, Any]) -> str:
    """Why a run says nothing; empty when it does."""
    if row["cpu_share"] > MAX_CPU_SHARE:
        return f"took {row['cpu_share']:.0%} of the host's CPUs"
    if row["late_share"] > MAX_LATE_SHARE:
        return f"chips were late by {row['late_share']:.1%}"
    late_s = row.get("sent_late_s", 0.0)
    return f"a request was sent {late_s:.1f} s late" if late_s > MAX_SENT_LATE_S else ""


def share_of(row: dict[str, Any]) -> float:
    """Goodput over what could be served: the sum of capacities, or what was asked where that is less."""
    return float(row["goodput"] / min(row["capacity"], row["asked_tokens_per_s"]))


def show(row: dict[str, Any]) -> str:
    """A row, to be read."""
    mark = f"  INVALID: {why}" if (why := why_invalid(row)) else ""
    return (
        f"  seed {row['seed']} load {row['load']:.2f} {row['policy']:<20} goodput {row['goodput']:6.1f} "
        f"({row['goodput'] / row['capacity']:.3f} of capacity, {share_of(row):.3f} of what could be served), "
        f"all {row['throughput']:6.1f}, good {row['good']}/{row['requests']}, refused {row['refused']}, "
        f"cut {row.get('cut')}, late {row.get('late_first')}, slow {row.get('slow_tokens')}, "
        f"first token {row['first_p50_s'] or 0:.2f}/{row['first_p99_s'] or 0:.2f} s, cpu {row['cpu_share']:.0%}, "
        f"late {row['late_share']:.2%}{mark}"
    )


def keep(row: dict[str, Any], file: Path | None) -> None:
    """Append a row to the file of all."""
    if file:
        with file.open("a") as opened:
            opened.write(json.dumps(row) + "\n")


def judge(rows: Sequence[dict[str, Any]]) -> int:
    """Print what the rows say; 1 when that is not enough."""
    failed = False
    ratios: dict[str, float] = {}
    for chips, load in sorted({(row["chips"], row["load"]) for row in rows}):
        print(f"{chips} at {load} of the sum of capacities:")
        shares: dict[str, list[float]] = {}
        for row in rows:
            if (row["chips"], row["load"]) == (chips, load) and not why_invalid(row):
                shares.setdefault(row["policy"], []).append(share_of(row))
        for name, found in shares.items():
            print(f"  {name:<20} {mean(found):.3f} of what could be served ({' '.join(f'{x:.3f}' for x in found)})")
        ours = mean(shares.get(JUDGED, [0.0]))
        theirs = [mean(found) for name, found in shares.items() if not name.startswith(OURS)]
        ratios[f"{chips} at {load}"] = ours
        untold = mean(shares.get(JUDGED_UNTOLD, [ours]))
        failed |= ours < LEAST_SHARE or any(min(ours, untold) <= other for other in theirs)
    invalid = sum(bool(why_invalid(row)) for row in rows)
    print(f"{len(rows)} runs, {invalid} of them invalid and left out")
    worst = min(ratios, key=lambda name: ratios[name], default="")
    print(f"{'FAILED: ' if failed or not ratios else ''}least: {ratios.get(worst, 0.0):.3f} ({worst})")
    return int(failed or not ratios)


def read_chips(text: str) -> list[tuple[str, int]]:
    """``chip:slots`` of each instance, with commas between."""
    words = (entry.split(":") for entry in text.split(","))
    return [(chip, int(slots)) for chip, slots in words]


def main() -> int:
    """Measure and keep rows, or judge them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", default="emu-l:24,emu-m:12,emu-s:8", help="chip:slots, ...")
    parser.add_argument("--toys", action="store_true", help="paced toys in place of vLLM")
    parser.add_argument(
        "--policies",
        nargs="+",
        default=[JUDGED, *THEIRS],
        help="flagvega:<part of the target>, flagvega-untold:<part>, or <policy>:<requests a slot>",
    )
    parser.add_argument("--router", default=shutil.which("vllm-router") or "vllm-router")
    parser.add_argument("--loads", nargs="+", type=float, default=[0.9, 1.1], help="of the sum of capacities")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--seconds", type=float, default=24.0, help="of the measured window")
    parser.add_argument("--alone-s", type=float, default=12.0, help="for each instance's capacity")
    parser.add_argument("--first-token-s", type=float, default=2.0)
    parser.add_argument("--per-token-s", type=float, default=0.2)
    parser.add_argument("--output", type=Path, help="JSON lines, appended")
    parser.add_argument("--judge", type=Path, help="measure nothing: read such a file")
    arguments = parser.parse_args()
    if arguments.judge:
        return judge([json.loads(line) for line in arguments.judge.read_text().splitlines()])
    with tempfile.TemporaryDirectory() as folder:
        arguments.folder = folder
        asyncio.run(compare(arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
