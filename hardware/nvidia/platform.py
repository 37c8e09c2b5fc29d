"""The control side of NVIDIA: NVML through nvidia-ml-py."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pynvml

from flagvega.platform import FoundDevice, Telemetry
from hardware.nvidia.visible import NvmlDevice, list_gpus, list_slices, nvml, select_visible
from hardware.vendor import VendorPlatform


class NvidiaPlatform(VendorPlatform):
    """NVIDIA GPUs, whole or MIG slices."""

    name = "nvidia"
    collective_backend = "nccl"
    visible_devices_env = ("CUDA_VISIBLE_DEVICES",)
    precedence = 2
    tool = "nvidia-smi"
    packages = ("transformer_engine", "flash_attn", "nvidia-nccl-cu12", "nvidia-nccl-cu13")
    features = frozenset({"bf16", "fp16", "transformer_engine", "flash_attn"})
    # NVML's order for CUDA too, and one queue, which tensor parallelism overlaps by before Blackwell.
    environment = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}

    def detect(self) -> Sequence[FoundDevice]:
        """The GPUs that CUDA may use here."""
        with nvml() as is_open:
            driver = pynvml.nvmlSystemGetDriverVersion() if is_open else ""
            devices = _visible() if is_open else []
        return [self.describe(i, device.name, device.memory_bytes, driver) for i, device in enumerate(devices)]

    def telemetry(self, index: int) -> Telemetry:
        """A reading by NVML; a MIG slice has its GPU's temperature and power."""
        with nvml() as is_open:
            devices = _visible() if is_open else []
            if index >= len(devices):
                return Telemetry()
            device = devices[index]
            used = _ask(pynvml.nvmlDeviceGetMemoryInfo, device.handle)
            rates = _ask(pynvml.nvmlDeviceGetUtilizationRates, device.handle)
            power_mw = _ask(pynvml.nvmlDeviceGetPowerUsage, device.gpu)
            return Telemetry(
                used_bytes=int(used.used) if used else None,
                utilization=rates.gpu / 100 if rates else None,
                temperature_c=_ask(pynvml.nvmlDeviceGetTemperature, device.gpu, pynvml.NVML_TEMPERATURE_GPU),
                power_w=None if power_mw is None else power_mw / 1000,
            )

    def link(self, index: int) -> str:
        """Active NVLinks and the PCIe slot."""
        with nvml() as is_open:
            devices = _visible() if is_open else []
            if index >= len(devices):
                return ""
            gpu = devices[index].gpu
            states = [_ask(pynvml.nvmlDeviceGetNvLinkState, gpu, i) for i in range(pynvml.NVML_NVLINK_MAX_LINKS)]
            generation = _ask(pynvml.nvmlDeviceGetMaxPcieLinkGeneration, gpu)
            width = _ask(pynvml.nvmlDeviceGetMaxPcieLinkWidth, gpu)
        parts = [f"{states.count(1)} NVLinks"] if 1 in states else []
        return ", ".join(parts + ([f"PCIe {generation} x{width}"] if generation and width else []))

    def versions(self) -> Mapping[str, str]:
        """The driver, the CUDA it supports, and NVIDIA's packages."""
        with nvml() as is_open:
            if not is_open:
                return super().versions()
            cuda = pynvml.nvmlSystemGetCudaDriverVersion()
            driver = pynvml.nvmlSystemGetDriverVersion()
        return {"driver": driver, "cuda driver": f"{cuda // 1000}.{cuda % 1000 // 10}", **super().versions()}


def _visible() -> list[NvmlDevice]:
    gpus = list_gpus()
    return select_visible(gpus, {gpu.uuid: list_slices(gpu) for gpu in gpus}, os.environ.get("CUDA_VISIBLE_DEVICES"))


def _ask(question: Callable[..., Any], *arguments: Any) -> Any:
    """An answer of NVML, or None where this device does not give it."""
    try:
        return question(*arguments)
    except pynvml.NVMLError:
        return None


platform = NvidiaPlatform()
