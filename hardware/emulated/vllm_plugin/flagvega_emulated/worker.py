"""A worker of vLLM whose steps take as long as its chip's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vllm.logger import init_logger
from vllm.v1.worker.cpu_worker import CPUWorker

from . import CHIP_ENV, PLACE_ENV
from .pace import Pace, read_memory_bytes, read_step_curve

logger = init_logger("vllm.flagvega_emulated")


class EmulatedWorker(CPUWorker):
    """Computes on the CPU, then waits for its chip."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        chip, place = os.environ[CHIP_ENV], os.environ.get(PLACE_ENV, "0")
        logs = os.environ.get("FLAGVEGA_LOGS")
        file = Path(logs) / f"emulated-{place}.json" if logs and self.rank == 0 else None
        tp = self.parallel_config.tensor_parallel_size
        self._pace = Pace(chip, read_step_curve(chip), place, tp, file)

    def determine_available_memory(self) -> int:
        """What the weights leave of the chip's memory.

        :raises ValueError: when they leave nothing.
        """
        chip, cache = self._pace.count.chip, self.cache_config
        weights = sum(each.nbytes for each in self.model_runner.get_model().parameters())
        room = round(read_memory_bytes(chip) * cache.gpu_memory_utilization) - weights
        if room <= 0:
            raise ValueError(f"{chip} has no memory left for the KV cache: the weights take {weights / 2**20:.0f} MiB")
        cache.kv_cache_memory_bytes = min(cache.kv_cache_memory_bytes, room)
        return int(super().determine_available_memory())

    def execute_model(self, scheduler_output: Any) -> Any:
        """The first part of a step; all of it where nothing is sampled."""
        if scheduler_output.total_num_scheduled_tokens:
            num_sequences = len(scheduler_output.num_scheduled_tokens)
            prompt_tokens = scheduler_output.total_num_scheduled_tokens - num_sequences
            self._pace.begin(num_sequences, prompt_tokens, bool(scheduler_output.scheduled_cached_reqs.req_ids))
        output = super().execute_model(scheduler_output)
        if output is not None:
            self._pace.end()
        return output

    def sample_tokens(self, grammar_output: Any) -> Any:
        """The second part."""
        output = super().sample_tokens(grammar_output)
        self._pace.end()
        return output

    def shutdown(self) -> None:
        """Tell how the host did."""
        self._pace.write()
        logger.info("%s", self._pace.count)
        super().shutdown()
