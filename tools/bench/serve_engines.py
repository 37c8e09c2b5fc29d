"""Engines for benches of serving: the real vLLM on emulated chips, or paced toys for a quick look."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import yaml

from tools.bench.tiny_model import ENGINE_ARGS, MAX_TOKENS, make_tiny_model

ROOT = Path(__file__).resolve().parents[2]
TOY = ROOT / "tests" / "toy" / "paced.py"
TOY_PACES = {"emu-l": (0.04, 12000), "emu-m": (0.06, 6000), "emu-s": (0.085, 2500)}
"""Seconds a step and tokens of prompt a second of the toys that stand for the chips."""
STARTING_S = 240.0


@dataclass(frozen=True)
class Engine:
    """One that runs."""

    url: str
    model: str
    chip: str
    slots: int
    count: Path | None = None
    """Where it writes how the host kept up with its chip."""

    def lateness(self) -> tuple[float, float]:
        """By how much the host was late so far, and the chip's time; of a toy nothing is known."""
        if self.count is None or not self.count.exists():
            return 0.0, 0.0
        count = json.loads(self.count.read_text())
        return count["late_s"], count["chip_s"]


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def started(argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> Iterator[int]:
    """The id of a process, for as long as it is needed; whatever it started ends with it."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            argv, stdout=file, stderr=file, cwd=ROOT, env={**os.environ, **(env or {})}, start_new_session=True
        )
    try:
        yield process.pid
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def wait_ready(url: str, model: str, limit_s: float = STARTING_S) -> None:
    """Wait until a completion comes."""
    deadline = time.monotonic() + limit_s
    body = {"model": model, "prompt": "w7 w8", "max_tokens": 1}
    async with aiohttp.ClientSession() as client:
        while time.monotonic() < deadline:
            with suppress(aiohttp.ClientError, OSError):
                async with client.post(f"{url}/v1/completions", json=body) as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.2)
    raise TimeoutError(f"{url} does not answer; its log tells why")


@asynccontextmanager
async def running(chips: Sequence[tuple[str, int]], folder: Path, toys: bool) -> AsyncIterator[list[Engine]]:
    """An engine for each chip with its number of slots, ready to serve."""
    engines = []
    with ExitStack() as stack:
        commands = _toys(chips) if toys else _vllms(chips, folder)
        for i, ((chip, slots), (url, argv, env)) in enumerate(zip(chips, commands, strict=True)):
            stack.enter_context(started(argv, folder / f"engine-{i}.log", env))
            count = None if toys else folder / f"emulated-{i}.json"
            engines.append(Engine(url, "toy" if toys else "tiny", chip, slots, count))
        for engine in engines:
            await wait_ready(engine.url, engine.model)
        yield engines


def _toys(chips: Sequence[tuple[str, int]]) -> Iterator[tuple[str, list[str], Mapping[str, str]]]:
    for chip, slots in chips:
        port, (step_s, prefill) = free_port(), TOY_PACES[chip]
        words = f"--port {port} --slots {slots} --step-s {step_s} --prefill {prefill}".split()
        yield f"http://127.0.0.1:{port}", [sys.executable, str(TOY), *words], {}


def _vllms(chips: Sequence[tuple[str, int]], folder: Path) -> Iterator[tuple[str, list[str], Mapping[str, str]]]:
    """The commands that a dry run of the product tells."""
    model = str(make_tiny_model(folder / "tiny"))
    given = {**ENGINE_ARGS, "model": model, "served_model_name": "tiny", "block_size": 32, "max_model_len": MAX_TOKENS}
    services = [
        {"serve_id": f"e{i}", "chip": chip, "engine_args": {**given, "max_num_seqs": slots, "port": free_port()}}
        for i, (chip, slots) in enumerate(chips)
    ]
    config = {
        "experiment": {"exp_name": "bench", "exp_dir": str(folder / "run"), "task": {"type": "serve"}},
        "cluster": {"nodes": [{"chip": chip} for chip, _ in chips]},
        "serve": services,
    }
    (folder / "bench.yaml").write_text(yaml.safe_dump(config))
    words = ["--config-path", str(folder), "--config-name", "bench", "action=dryrun", "output=json"]
    told = subprocess.run([sys.executable, "run.py", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    for command in json.loads(told.stdout)["commands"]:
        yield command["url"], command["argv"], {**command["env"], "FLAGVEGA_LOGS": str(folder)}
