"""What a chip vendor's folder must offer, and the registry that finds them. No vendor is named here.

``hardware/<vendor>/platform.py`` (no torch) binds ``platform``, an instance of a Platform;
``hardware/<vendor>/device.py`` (torch, rank side) binds ``device``, a Device;
``hardware/<vendor>/chips.yaml`` holds the vendor's chips (:func:`read_chips`).
"""

from __future__ import annotations

import difflib
import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import yaml

from flagvega.errors import ConfigError, Fault
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
    """``read`` (in a tool, a page or a table), ``said`` (by one third party), ``memory``."""
    note: str = ""
    """Conflicts between sources, cells that are from memory, cards that are two devices."""


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
class Refusal:
    """Arguments of a serving engine that a chip's build of it does not take."""

    when: Mapping[str, Any]
    """Argument -> a value, a list of values, or ``many`` (more than 1): refused where all of them hold."""
    reason: str
    """The engine's own words, where it has some."""


@dataclass(frozen=True)
class Serving:
    """How a vendor's chips run a serving engine: the build, and what it needs."""

    engine: str
    package: str
    """The Python package that brings the engine to the chip: a build of it, or a plug-in."""
    version: str
    """Of that package: the one that we know."""
    env: Mapping[str, str]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Engine arguments that it gets unless the user gives others."""
    head_dims: tuple[int, ...] = ()
    """Widths of an attention head that it computes; empty: all, or unknown."""
    refused: tuple[Refusal, ...] = ()
    connector: str = ""
    """How an instance hands a prompt's cache to another one, in the engine's own words; empty: none is known."""
    note: str = ""
    tested: bool = False


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
    precedence: int = 0
    """When it is asked for devices: own modules 0, those that pose as another vendor 1, that vendor 2, the host 3."""
    tested: bool = False
    """False: never run on hardware by us."""

    @abstractmethod
    def detect(self) -> Sequence[FoundDevice]:
        """The devices of this host; empty when there are none or no driver."""

    def chips(self) -> Mapping[str, Chip]:
        """The vendor's chips by name, from the ``chips.yaml`` beside its platform."""
        return read_chips(Path(inspect.getfile(type(self))).with_name("chips.yaml"), self.name)

    def env(self, chip: str, local: int, num_local: int) -> Mapping[str, str]:
        """Environment that a rank on the ``local``-th device of this host needs."""
        return {}

    def serving(self, engine: str) -> Serving | None:
        """How the vendor's chips run a serving engine, from the ``serve.yaml`` beside its platform; None: unknown."""
        file = Path(inspect.getfile(type(self))).with_name("serve.yaml")
        return read_serving(file).get(engine) if file.is_file() else None

    def serving_env(
        self, chip: str, devices: Sequence[int], workers: int, place: int, num_on_host: int
    ) -> Mapping[str, str]:
        """Environment of an instance on these local devices, the ``place``-th of those that share the host."""
        return {name: ",".join(map(str, devices)) for name in self.visible_devices_env}

    def lateness(self, logs: Path) -> tuple[float, float] | None:
        """(seconds that emulated chips took, seconds that their host was late), of the instances whose logs are there.

        None where chips take the time they take.
        """
        return None

    def telemetry(self, index: int) -> Telemetry:
        """A reading of device ``index``; empty where no tool tells."""
        return Telemetry()

    def link(self, index: int) -> str:
        """How device ``index`` is connected, in words; empty where no tool tells."""
        return ""

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

    def begin(self) -> None:  # noqa: B027
        """Work begins now: what the rank waited for before this was not its chip's work."""

    def pace(self, kind: str, flops: float, num_bytes: float, tp: int = 1) -> None:  # noqa: B027
        """A piece of work is done: an emulated chip waits until its own time for it has passed.

        :param kind: ``embedding_fwd``, ``layer_fwd``, ``layer_bwd``, ``head_fwd``, ``head_bwd``,
            ``optimizer``, ``collective`` or ``transfer``.
        :param flops: this rank's share.
        :param num_bytes: bytes that this rank moves, in its memory or over its link.
        :param tp: over how many ranks the matrices are cut.
        """

    def duration_s(self, kind: str, flops: float, num_bytes: float, tp: int = 1) -> float:
        """Seconds that an emulated chip needs for this work; 0 on real chips, which take the time they take."""
        return 0.0

    def begin_step(self, step: int) -> None:  # noqa: B027
        """A training step begins (emulated chips limit memory in the first two of a process)."""

    def timing_verdict(self) -> str:
        """Why the timings of this run do not count; empty when they do."""
        return ""

    def peak_bytes(self) -> int:
        """Most bytes of tensors held so far on the device."""
        return 0


platforms: Registry[Platform] = Registry("platform", folder="hardware", module="platform", group="flagvega.platforms")


_GIB = 2**30
_BEFORE = r"(?<![A-Za-z0-9_])"
_BEHIND = r"(?![A-Za-z0-9_]|-[A-Za-z0-9]| (?:Ti|Super|D|Laptop|Mobile|Max-Q)\b)"
"""What must not follow a chip's name: it would be the beginning of another chip's."""
_SLICE = re.compile(r"\bMIG\b")
_MEMORY_TOLERANCE = 0.15
"""Drivers show up to this share less or more memory than the box says."""


@cache
def read_chips(path: Path, vendor: str) -> Mapping[str, Chip]:
    """Chips of a ``chips.yaml`` by name.

    Entries: ``name``, ``aliases``, ``memory_gib``, ``bandwidth_gb_s``, ``peak_tflops`` (by dtype),
    ``link_gb_s``, ``source``, ``certainty``, ``note``; what is unknown is left out.
    """
    entries = yaml.safe_load(path.read_text()) or []
    return {entry["name"]: _chip(entry, vendor) for entry in entries}


def _chip(entry: Mapping[str, Any], vendor: str) -> Chip:
    peaks = {dtype: tflops * 1e12 for dtype, tflops in entry.get("peak_tflops", {}).items()}
    memory, bandwidth, link = (entry.get(key) for key in ("memory_gib", "bandwidth_gb_s", "link_gb_s"))
    return Chip(
        name=entry["name"],
        vendor=vendor,
        aliases=tuple(str(alias) for alias in entry.get("aliases", ())),
        memory_bytes=None if memory is None else round(memory * _GIB),
        memory_bytes_per_s=None if bandwidth is None else bandwidth * 1e9,
        peak_flops=peaks or None,
        link_bytes_per_s=None if link is None else link * 1e9,
        source=entry.get("source", ""),
        certainty=entry.get("certainty", ""),
        note=entry.get("note", ""),
    )


@cache
def read_serving(path: Path) -> Mapping[str, Serving]:
    """Entries of a ``serve.yaml`` by engine: the fields of :class:`Serving`, ``refused`` a list of :class:`Refusal`."""
    entries = yaml.safe_load(path.read_text()) or []
    return {entry["engine"]: _serving(entry) for entry in entries}


def _serving(entry: Mapping[str, Any]) -> Serving:
    refused = tuple(Refusal(**each) for each in entry.get("refused", ()))
    head_dims = tuple(entry.get("head_dims", ()))
    return Serving(**{**entry, "env": entry.get("env", {}), "head_dims": head_dims, "refused": refused})


def match_chip(device_name: str, chips: Iterable[Chip], memory_bytes: int | None = None) -> Chip | None:
    """The chip that a driver's device name means, or None: an unknown chip is better than a wrong one.

    Names sit inside names (H20, H200, GH200), so whole words are matched and the longest name wins.
    A longer model name ("3090 Ti", "MLU370-S8"), a slice ("MIG") or other memory is another chip.
    """
    if _SLICE.search(device_name):
        return None
    found: list[tuple[int, Chip]] = []
    for chip in chips:
        if memory_bytes and chip.memory_bytes and abs(memory_bytes / chip.memory_bytes - 1) > _MEMORY_TOLERANCE:
            continue
        for name in (chip.name, *chip.aliases):
            if re.search(_BEFORE + re.escape(name) + _BEHIND, device_name, re.IGNORECASE):
                found.append((len(name), chip))
    return max(found, key=lambda item: item[0])[1] if found else None


def all_chips() -> dict[str, Chip]:
    """Every chip of every platform by name."""
    return {name: chip for vendor in platforms.names() for name, chip in platforms.get(vendor).chips().items()}


def find_chip(name: str) -> Chip:
    """The chip of that name or alias, in any case; ConfigError with the nearest names when there is none."""
    chips = all_chips()
    wanted = name.casefold()
    if wanted in chips:
        return chips[wanted]
    found = [chip for chip in chips.values() if wanted in {alias.casefold() for alias in chip.aliases}]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(Fault(f"chip '{name}' is ambiguous", fix=f"write one of: {_names(found)}"))
    spellings = {alias.casefold(): chip for chip in chips.values() for alias in (*chip.aliases, chip.name)}
    near = [spellings[match] for match in difflib.get_close_matches(wanted, spellings, n=5, cutoff=0.5)]
    fix = f"did you mean {_names(near)}?" if near else f"platforms: {', '.join(platforms.names())}"
    raise ConfigError(Fault(f"unknown chip '{name}'", fix=fix))


def _names(chips: Iterable[Chip]) -> str:
    return ", ".join(dict.fromkeys(chip.name for chip in chips))


def detect_devices() -> list[FoundDevice]:
    """The devices of this host: accelerators of every vendor, or the CPU when there are none."""
    found: list[FoundDevice] = []
    for platform in sorted(map(platforms.get, platforms.names()), key=lambda platform: platform.precedence):
        if platform.precedence < HOST_PRECEDENCE or not found:
            found += platform.detect()
    return found


HOST_PRECEDENCE = 3
"""Platforms that stand for the host itself: devices only where there is no accelerator."""
