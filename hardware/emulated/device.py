"""The rank side of an emulated chip."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import torch

from flagvega.platform import Device
from hardware.cpu import namespace
from hardware.emulated.clock import Clock, HostLoad, judge
from hardware.emulated.curves import Curve, read_curve
from hardware.emulated.memory import LimitedMemory
from hardware.emulated.platform import platform

NUM_LIMITED_STEPS = 2
"""Memory is watched until this many steps are done: by then every buffer has been needed once. Timings count after."""


class EmulatedDevice(Device):
    """Computes on the CPU, waits for its chip's clock, and runs out of its chip's memory."""

    type = "cpu"

    _curve: Curve
    _clock: Clock
    _memory: LimitedMemory
    _load: HostLoad | None = None

    def open(self, chip: str, local: int) -> torch.device:
        """Start the clock and watch the memory.

        :raises PreflightError: no such chip can be emulated.
        """
        self._curve = read_curve(chip)
        self._clock = Clock(self._curve, f"{os.environ.get('FLAGVEGA_NODE', '0')}/{local}")
        self._memory = LimitedMemory(chip, platform.chips()[chip].memory_bytes or 0)
        self._memory.__enter__()  # type: ignore[no-untyped-call]
        self._num_steps = 0
        return namespace.CPU

    @property
    def namespace(self) -> ModuleType | Any:
        """That of the CPU."""
        return namespace

    def begin(self) -> None:
        """Count the chip's time from now."""
        self._clock.begin()

    def pace(self, kind: str, flops: float, num_bytes: float, tp: int = 1) -> None:
        """Wait until the chip would be done."""
        self._clock.pace(kind, flops, num_bytes, tp)

    def duration_s(self, kind: str, flops: float, num_bytes: float, tp: int = 1) -> float:
        """The chip's time for a piece of work, without jitter."""
        return self._curve.duration_s(kind, flops, num_bytes, tp)

    def begin_step(self, step: int) -> None:
        """Start the clock anew; after the first steps of this process watch the timings instead of the memory."""
        if self._num_steps == NUM_LIMITED_STEPS:
            self._memory.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._load = HostLoad()
            self._clock.forgive()
        self._num_steps += 1
        self._clock.begin()

    def timing_verdict(self) -> str:
        """Whether the host was too busy, or slower than the chip; nothing to say before memory is unwatched."""
        return judge(self._clock, self._load.share()) if self._load else ""

    def peak_bytes(self) -> int:
        """Most bytes of live tensor storage while it was watched."""
        return self._memory.peak_bytes


device = EmulatedDevice()
