"""The platform that vLLM sees: a CPU with the memory and the name of an emulated chip."""

from __future__ import annotations

import os
from typing import Any

from vllm.platforms.cpu import CpuPlatform

from . import CHIP_ENV
from .pace import read_memory_bytes


class EmulatedPlatform(CpuPlatform):
    """vLLM computes as on any CPU; only the worker knows of the chip's pace."""

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        """The chip."""
        return os.environ[CHIP_ENV]

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        """The chip's memory."""
        return read_memory_bytes(os.environ[CHIP_ENV])

    @classmethod
    def check_and_update_config(cls, vllm_config: Any) -> None:
        """As on a CPU, with our worker, the chip's memory and no process that only waits."""
        parallel, cache = vllm_config.parallel_config, vllm_config.cache_config
        alone = parallel.world_size == 1
        if parallel.worker_cls == "auto":
            parallel.worker_cls = "flagvega_emulated.worker.EmulatedWorker"
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would go before the chip's memory
        if cache.kv_cache_memory_bytes is None:
            cache.kv_cache_memory_bytes = round(cls.get_device_total_memory() * cache.gpu_memory_utilization)
        super().check_and_update_config(vllm_config)
        if alone:
            # A worker of its own would be polled throughout each step, at the cost of a core.
            parallel.distributed_executor_backend = "uni"
