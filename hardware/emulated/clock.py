"""The clock of an emulated chip, and whether the host kept up with it."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterable

import psutil

from hardware.cpu.platform import num_cores
from hardware.emulated.curves import Curve

MAX_CPU_SHARE = 0.6
"""A host busier than this delays ranks that should only be waiting."""
MAX_OVERRUN_SHARE = 0.1
"""Share of the chip's time by which its work may be late altogether."""
NEGLIGIBLE_SHARE = 0.005
"""Share of all time that matters to no step, however little the chip had to do."""

_WAITING = ("collective", "transfer")
"""Kinds that include waiting for other ranks, which is no fault of the host."""


class Clock:
    """Holds a rank back until its chip would be done.

    The chip's time is counted from the end of the previous piece of work, or from :meth:`begin`; the
    time that the computation really took is part of it.

    :param name: tells the jitter of devices apart; equal names repeat it.
    """

    def __init__(self, curve: Curve, name: str) -> None:
        self._curve = curve
        self._random = random.Random(f"{curve.seed}/{name}")
        self.begin()
        self.forgive()

    def begin(self) -> None:
        """Count the next piece of work from now."""
        self._mark_s = time.perf_counter()

    def forgive(self) -> None:
        """Forget the overruns so far: the first steps warm up."""
        self.chip_s = 0.0
        """The chip's time for all computation so far."""
        self.overrun_s = 0.0
        """By how much the host was slower than the chip, summed."""
        self.num_overruns = 0
        self._since_s = time.perf_counter()

    @property
    def elapsed_s(self) -> float:
        """Seconds since overruns were forgiven."""
        return time.perf_counter() - self._since_s

    def pace(self, kind: str, flops: float, num_bytes: float, tp: int) -> None:
        """Wait until the chip would be done with a piece of work; count an overrun when it would have been."""
        jitter = math.exp(self._random.gauss(0.0, self._curve.jitter))
        duration_s = self._curve.duration_s(kind, flops, num_bytes, tp) * jitter
        deadline_s = self._mark_s + duration_s
        late_s = time.perf_counter() - deadline_s
        if late_s <= 0.0:
            time.sleep(-late_s)
            self._mark_s = deadline_s  # sleep oversleeps: the next piece makes up for it
        else:
            self.begin()
        if kind not in _WAITING:
            self.chip_s += duration_s
            if late_s > 0.0:
                self.overrun_s += late_s
                self.num_overruns += 1


class HostLoad:
    """CPU time of this run's ranks on this host, from the creation of this object on."""

    def __init__(self) -> None:
        self._wall_s, self._cpu_s = time.monotonic(), _run_cpu_s()

    def share(self) -> float:
        """CPU time over cores times wall time."""
        wall_s = time.monotonic() - self._wall_s
        return (_run_cpu_s() - self._cpu_s) / (num_cores() * max(wall_s, 1e-3))


def _run_cpu_s() -> float:
    """That of what this rank's launcher started."""
    launcher = psutil.Process().parent() or psutil.Process()
    return cpu_s(launcher.children(recursive=True))


def cpu_s(processes: Iterable[psutil.Process]) -> float:
    """CPU seconds of those processes that still live."""
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def judge(clock: Clock, cpu_share: float) -> str:
    """Why the timings do not count, or an empty string."""
    if cpu_share > MAX_CPU_SHARE:
        return (
            f"the ranks used {cpu_share:.0%} of this host's {num_cores()} cores, more than "
            f"{MAX_CPU_SHARE:.0%}, so they waited for the CPU and not for their chips; use fewer ranks or more cores"
        )
    if clock.overrun_s > max(MAX_OVERRUN_SHARE * clock.chip_s, NEGLIGIBLE_SHARE * clock.elapsed_s):
        return (
            f"{clock.num_overruns} pieces of work took this host {clock.overrun_s:.1f} s longer "
            f"than the emulated chip, which was at work for {clock.chip_s:.1f} s"
        )
    return ""
