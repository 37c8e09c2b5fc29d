"""Answers ``torch.cuda``'s questions for tensors that live in host memory.

An engine written for CUDA asks for streams, events, generators and memory; a CPU runs everything in
order on one stream, and torch's default generator is the device's generator. What has no meaning on
a CPU (types, graphs) is torch.cuda's own.
"""

from __future__ import annotations

import contextlib
import resource
import time
from types import SimpleNamespace
from typing import Any

import psutil
import torch

CPU = torch.device("cpu")


class Event:
    """A point in time; the work before it is done when it is recorded."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._time_s = 0.0

    def record(self, stream: Stream | None = None) -> None:
        """Remember now."""
        self._time_s = time.perf_counter()

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds from this event to ``end``."""
        return (end._time_s - self._time_s) * 1e3

    def query(self) -> bool:
        """Whether the work before the event is done: always."""
        return True

    def wait(self, stream: Stream | None = None) -> None:
        """Nothing to wait for."""

    def synchronize(self) -> None:
        """Nothing to wait for."""


class Stream:
    """The only stream of a CPU; it is always drained."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.device = CPU

    def record_event(self, event: Event | None = None) -> Event:
        """Record an event now and return it."""
        event = event or Event()
        event.record()
        return event

    def wait_event(self, event: Event) -> None:
        """Nothing to wait for."""

    def wait_stream(self, stream: Stream) -> None:
        """Nothing to wait for."""

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def query(self) -> bool:
        """Whether all work is done: always."""
        return True


class _Nvtx:
    """Profiler marks, which only CUDA's profiler reads."""

    def range_push(self, *args: Any, **kwargs: Any) -> None:
        """Ignore the mark."""

    def range_pop(self) -> None:
        """Ignore the mark."""

    def range(self, *args: Any, **kwargs: Any) -> contextlib.AbstractContextManager[None]:
        """Ignore the mark."""
        return contextlib.nullcontext()


_STREAM = Stream()
nvtx = _Nvtx()


def current_device() -> torch.device:
    """The CPU, as a torch.device: an index would be read as one of CUDA's."""
    return CPU


def device_count() -> int:
    """A rank sees one device."""
    return 1


def set_device(device: Any) -> None:
    """There is only one."""


def is_available() -> bool:
    """CUDA is not available."""
    return False


def is_initialized() -> bool:
    """CUDA is not initialised."""
    return False


def synchronize(device: Any = None) -> None:
    """All work is done when its call returns."""


def empty_cache() -> None:
    """No cache."""


def manual_seed(seed: int) -> None:
    """Seed torch's default generator."""
    torch.manual_seed(seed)


manual_seed_all = manual_seed


def initial_seed() -> int:
    """Seed of torch's default generator."""
    return torch.initial_seed()


def get_rng_state(device: Any = None) -> torch.Tensor:
    """State of torch's default generator."""
    return torch.get_rng_state()


def set_rng_state(new_state: torch.Tensor, device: Any = None) -> None:
    """Set the state of torch's default generator."""
    torch.set_rng_state(new_state)


def current_stream(device: Any = None) -> Stream:
    """The only stream."""
    return _STREAM


default_stream = current_stream


def set_stream(stream: Stream) -> None:
    """There is only one."""


def stream(stream: Stream | None) -> contextlib.AbstractContextManager[None]:
    """Run the body on the only stream."""
    return contextlib.nullcontext()


def is_current_stream_capturing() -> bool:
    """No graphs."""
    return False


def get_device_capability(device: Any = None) -> tuple[int, int]:
    """Older than any CUDA device, so that no CUDA kernel is chosen."""
    return (0, 0)


def get_device_name(device: Any = None) -> str:
    """The name ``cpu``."""
    return "cpu"


def get_device_properties(device: Any = None) -> SimpleNamespace:
    """Name, capability and memory, under torch.cuda's names."""
    return SimpleNamespace(
        name="cpu", major=0, minor=0, multi_processor_count=1, total_memory=psutil.virtual_memory().total
    )


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """Free and total bytes of host memory."""
    memory = psutil.virtual_memory()
    return memory.available, memory.total


def memory_allocated(device: Any = None) -> int:
    """Resident bytes of the process."""
    return int(psutil.Process().memory_info().rss)


def max_memory_allocated(device: Any = None) -> int:
    """Most resident bytes of the process so far."""
    # The kernel keeps the peak lazily: it may lag behind the present.
    return max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, memory_allocated())


memory_reserved = memory_allocated
max_memory_reserved = max_memory_allocated


def memory_stats(device: Any = None) -> dict[str, int]:
    """Current and peak bytes under the keys that CUDA's allocator uses; it never retries."""
    current, peak = memory_allocated(), max_memory_allocated()
    kinds = ("allocated_bytes", "reserved_bytes")
    return {
        **{f"{kind}.all.current": current for kind in kinds},
        **{f"{kind}.all.peak": peak for kind in kinds},
        "num_alloc_retries": 0,
    }


def reset_peak_memory_stats(device: Any = None) -> None:
    """The process's peak cannot be reset."""


def __getattr__(name: str) -> Any:
    return getattr(torch.cuda, name)
