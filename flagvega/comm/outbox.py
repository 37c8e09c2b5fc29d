"""Messages on their way out: sent at once, or, over an emulated link, when its time has passed."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from typing import Any

import torch
import torch.distributed as dist


class Outbox:
    """Sends without making the caller wait; keeps what it sends alive until it has left."""

    def __init__(self, group: Any) -> None:
        self.group = group
        self._leaving: deque[tuple[Any, torch.Tensor]] = deque()
        self._queue: queue.Queue[tuple[torch.Tensor, int, float]] | None = None
        self._free_s = 0.0

    def post(self, block: torch.Tensor, peer: int, duration_s: float = 0.0) -> None:
        """Send ``block`` to ``peer``; the link is busy with it for ``duration_s``, one message at a time."""
        if duration_s:
            # Counted from here: a carrier that wakes up late makes no later message late.
            self._free_s = max(self._free_s, time.perf_counter()) + duration_s
            self._delayed().put((block, peer, self._free_s))
        else:
            self._send(block, peer)

    def finish(self) -> None:
        """Wait until everything has left."""
        if self._queue is not None:
            self._queue.join()
        while self._leaving:
            self._leaving.popleft()[0].wait()

    def _send(self, block: torch.Tensor, peer: int) -> None:
        while self._leaving and self._leaving[0][0].is_completed():
            self._leaving.popleft()
        self._leaving.append((dist.isend(block, peer, group=self.group), block))

    def _delayed(self) -> queue.Queue[tuple[torch.Tensor, int, float]]:
        if self._queue is None:
            self._queue = queue.Queue()
            threading.Thread(target=self._carry, args=(self._queue,), daemon=True).start()
        return self._queue

    def _carry(self, messages: queue.Queue[tuple[torch.Tensor, int, float]]) -> None:
        while True:
            block, peer, leaves_s = messages.get()
            time.sleep(max(0.0, leaves_s - time.perf_counter()))
            self._send(block, peer)
            messages.task_done()
