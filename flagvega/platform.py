"""What a chip vendor's folder must offer, and the registry that finds them. No vendor is named here.

``hardware/<vendor>/platform.py`` (no torch) binds ``platform``, an instance of a Platform;
``hardware/<vendor>/device.py`` (torch, rank side) binds ``device``, a Device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from flagvega.registry import Registry

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Chip:
    """Facts about a kind of accelerator; None is unknown, never zero."""

    name: str
    vendor: str
    aliases: tuple[str, ...] = ()
    memory_bytes: int | None = None
    memory_bytes_per_s: float | None = None
    peak_flops: Mapping[str, float] | None = None
    """Dense peak FLOP/s by dtype name (fp32, tf32, fp16, bf16, fp8, int8)."""
    link_bytes_per_s: float | None = None
    """Intra-node link, per device and direction."""
    source: str = ""
    certainty: str = ""


@dataclass(frozen=True)
class FoundDevice:
    """One accelerator that is really here."""

    vendor: str
    index: int
    chip: str
    name: str
    memory_bytes: int | None = None
    driver: str = ""


@dataclass(frozen=True)
class Telemetry:
    """One reading of a device; None where the vendor's tool does not say."""

    used_bytes: int | None = None
    utilization: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None


class Platform(ABC):
    """The control side of a vendor: no torch, no side effects."""

    name: str
    collective_backend: str
    """What torch.distributed calls the vendor's collectives (``gloo``, ``nccl``, ``hccl``)."""
    visible_devices_env: tuple[str, ...] = ()
    """Variables that select devices for a process; all are set alike."""
    tested: bool = False
    """False: never run on hardware by us."""

    @abstractmethod
    def detect(self) -> Sequence[FoundDevice]:
        """The devices of this host; empty when there are none or no driver."""

    @abstractmethod
    def chips(self) -> Mapping[str, Chip]:
        """The vendor's chips by name, from its ``chips.yaml``."""

    @abstractmethod
    def env(self, chip: str, local: int, num_local: int) -> Mapping[str, str]:
        """Environment that a rank on the ``local``-th device of this host needs."""

    @abstractmethod
    def telemetry(self, index: int) -> Telemetry:
        """A reading of device ``index``."""

    def versions(self) -> Mapping[str, str]:
        """Drivers and libraries by name."""
        return {}

    def supports(self, feature: str) -> bool:
        """Whether the chip's software offers ``transformer_engine``, ``flash_attn``, ``bf16``, ``fp16``."""
        return False


class Device(ABC):
    """The rank side of a vendor: where tensors live and what stands in for ``torch.cuda``."""

    type: str
    """torch device type (``cpu``, ``cuda``, ``npu``)."""

    @abstractmethod
    def open(self, chip: str, local: int) -> torch.device:
        """Take the rank's device (called once, before any tensor is made) and return it."""

    @property
    @abstractmethod
    def namespace(self) -> ModuleType | Any:
        """What answers ``torch.cuda``'s questions (current_device, streams, events, rng, memory)."""

    def pace(self, kind: str, flops: float, num_bytes: float) -> None:  # noqa: B027
        """A piece of work is done: an emulated chip waits until its own time for it has passed."""

    def begin_step(self, step: int) -> None:  # noqa: B027
        """A training step begins (emulated chips limit memory in the first two)."""

    def peak_bytes(self) -> int:
        """Most bytes of tensors held so far on the device."""
        return 0


platforms: Registry[Platform] = Registry("platform", folder="hardware", module="platform", group="flagvega.platforms")
