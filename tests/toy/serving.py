"""A real gateway in front of paced toy engines, each a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

TOY = ROOT / "tests" / "toy" / "paced.py"
START_S = 30.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Served:
    """Toys, and a gateway in front of them; what is started is ended with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.toys: list[subprocess.Popen[bytes]] = []
        self.ports: list[int] = []
        self.words: list[Sequence[str]] = []
        self.gateway: subprocess.Popen[bytes] | None = None
        self.gateways: list[subprocess.Popen[bytes]] = []
        self.url = ""

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        for process in [*self.toys, *self.gateways]:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()

    def add_toy(self, *words: str, port: int = 0) -> int:
        """Start a toy; its index."""
        self.ports.append(port or free_port())
        self.words.append(words)
        self.toys.append(self._start_toy(len(self.ports) - 1))
        return len(self.toys) - 1

    def restart_toy(self, index: int) -> None:
        """Start a toy again, where it was."""
        self.toys[index] = self._start_toy(index)

    def _start_toy(self, index: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, str(TOY), "--port", str(self.ports[index]), *self.words[index]])

    def start(
        self,
        facts: Sequence[Mapping[str, Any]] = (),
        env: Mapping[str, str] | None = None,
        wait: bool = True,
        **more: Any,
    ) -> None:
        """Start the gateway in front of all toys; ``facts`` are said about each, ``more`` are its other settings."""
        facts = facts or [{"slots": 8} for _ in self.ports]
        instances = [
            {"id": i, "url": f"http://127.0.0.1:{port}", **about}
            for i, (port, about) in enumerate(zip(self.ports, facts, strict=True))
        ]
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        probing = {"interval_s": 0.2, "health_s": 1.5, "failures": 2, "slow_start_s": 0.0}
        settings = {
            "port": port,
            "run_dir": str(self.folder),
            "record_s": 0.5,
            "probing": probing,
            "instances": instances,
        }
        file = self.folder / "gateway.config.json"
        file.write_text(json.dumps(settings | more))
        argv = [sys.executable, "-P", "-m", "flagvega.serve", "--config", str(file)]
        environ = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
        self.gateway = subprocess.Popen(argv, env=environ)
        self.gateways.append(self.gateway)
        if wait:
            self.wait_for(lambda: self.health()["ready"] == len(self.ports))

    def health(self) -> dict[str, Any]:
        """What ``/health`` says; nothing ready while it does not answer."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            return dict(json.load(error))
        except OSError:
            return {"ready": 0, "state": "silent", "instances": []}

    def wait_for(self, condition: Any, timeout_s: float = START_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"nothing happened in time: {self.health()}"
            time.sleep(0.05)

    def toy(self, index: int) -> dict[str, int]:
        """What a toy says it did."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[index]}/toy", timeout=5) as answer:
            return dict(json.load(answer))

    def metrics(self) -> dict[str, float]:
        """Every number of ``/metrics``."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}


def said(num_tokens: int) -> str:
    """The whole answer of a toy."""
    return "".join(f"{i} " for i in range(num_tokens))


async def ask(
    session: Any, url: str, num_tokens: int, stream: bool = True, prompt: str = "hello", **more: Any
) -> dict[str, Any]:
    """Ask for a completion; its status, text, the instance, and what broke it off."""
    body = {"model": "toy", "prompt": prompt, "max_tokens": num_tokens, "stream": stream, **more}
    async with session.post(f"{url}/v1/completions", json=body) as response:
        found: dict[str, Any] = {
            "status": response.status,
            "instance": response.headers.get("X-Flagvega-Instance"),
            "headers": dict(response.headers),
            "text": "",
            "error": None,
        }
        if not stream or response.status != 200:
            value = await response.json()
            if "error" in value:
                return found | {"error": value["error"]}
            return found | {"text": value["choices"][0]["text"], "usage": value["usage"]}
        async for line in response.content:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                found["error"] = event["error"]
            elif not event["choices"]:
                found["usage"] = event["usage"]
            else:
                found["text"] += event["choices"][0]["text"]
                found.setdefault("begun", asyncio.get_running_loop().time())
        return found
