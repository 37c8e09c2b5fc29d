"""The control side of a CPU."""

from __future__ import annotations

import os
import platform as host
from collections.abc import Mapping, Sequence

import psutil

from flagvega.platform import HOST_PRECEDENCE, FoundDevice, Platform, Telemetry


class CpuPlatform(Platform):
    """One device: the host itself, with any number of ranks on it."""

    name = "cpu"
    collective_backend = "gloo"
    precedence = HOST_PRECEDENCE
    tested = True

    def detect(self) -> Sequence[FoundDevice]:
        """The host."""
        return [FoundDevice("cpu", 0, "cpu", host.processor() or host.machine(), psutil.virtual_memory().total)]

    def env(self, chip: str, local: int, num_local: int) -> Mapping[str, str]:
        """Share the cores among the host's ranks."""
        return {"OMP_NUM_THREADS": str(max(1, num_cores() // num_local))}

    def serving_env(
        self, chip: str, devices: Sequence[int], workers: int, place: int, num_on_host: int
    ) -> Mapping[str, str]:
        """Cores of its own for each worker of an instance, as far as the host has them."""
        cores = sorted(os.sched_getaffinity(0))
        share = len(cores) // num_on_host
        own = cores[place * share : (place + 1) * share]
        each = len(own) // workers
        if not each:
            return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
        parts = [own[i * each : (i + 1) * each] for i in range(workers)]
        return {"VLLM_CPU_OMP_THREADS_BIND": "|".join(",".join(map(str, part)) for part in parts)}

    def telemetry(self, index: int) -> Telemetry:
        """Memory and load of the whole host."""
        return Telemetry(used_bytes=psutil.virtual_memory().used, utilization=psutil.cpu_percent() / 100)

    def supports(self, feature: str) -> bool:
        """Plain torch: bf16 runs, fused kernels do not."""
        return feature in ("bf16", "fp16")


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


platform = CpuPlatform()
