"""The control side of emulated chips: any host has any number of them, when its cluster names them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from flagvega.platform import FoundDevice, Platform, Refusal, Serving
from hardware.cpu.platform import platform as cpu

VLLM_PLUGIN = Path(__file__).with_name("vllm_plugin")


class EmulatedPlatform(Platform):
    """Never found; a cluster names them."""

    name = "emulated"
    collective_backend = "gloo"
    tested = True

    def detect(self) -> Sequence[FoundDevice]:
        """Nothing that is really here."""
        return []

    def env(self, chip: str, local: int, num_local: int) -> Mapping[str, str]:
        """One thread a rank: the chip's clock must be slower than the CPU, with all ranks of the host at work."""
        return {"OMP_NUM_THREADS": "1"}

    def serving(self, engine: str) -> Serving | None:
        """The CPU's build, which our plug-in slows down to the chip."""
        found = cpu.serving(engine)
        if found is None:
            return None
        # An empty target device: "cpu" would go before every plug-in.
        env = {"VLLM_TARGET_DEVICE": "", "VLLM_PLUGINS": "flagvega_emulated"}
        stages = Refusal({"pipeline_parallel_size": "many"}, "an emulated chip paces whole steps, not stages")
        arguments = {**found.arguments, "enforce_eager": True}  # compiling would make nothing faster here
        return replace(found, env=env, arguments=arguments, refused=(*found.refused, stages))

    def serving_env(
        self, chip: str, devices: Sequence[int], workers: int, place: int, num_on_host: int
    ) -> Mapping[str, str]:
        """Where vLLM finds the plug-in, and which chip it is; one thread a worker."""
        inherited = os.environ.get("PYTHONPATH")
        return {
            "PYTHONPATH": os.pathsep.join([str(VLLM_PLUGIN), *([inherited] if inherited else [])]),
            "FLAGVEGA_EMULATED_CHIP": chip,
            "FLAGVEGA_EMULATED_PLACE": str(place),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
        }

    def lateness(self, logs: Path) -> tuple[float, float] | None:
        """As the instances' workers count."""
        counts = [json.loads(file.read_text()) for file in logs.glob("emulated-*.json")]
        return sum(each["chip_s"] for each in counts), sum(each["late_s"] for each in counts)

    def supports(self, feature: str) -> bool:
        """What the CPU does."""
        return feature in ("bf16", "fp16")


platform = EmulatedPlatform()
