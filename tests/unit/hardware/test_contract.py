"""What every registered platform keeps. CPU and emulated chips run in earnest; the others against a stand-in torch."""

from __future__ import annotations

import importlib
import json
import os
import sys
import types
from pathlib import Path

import pytest

import hardware.torch_device
from flagvega.errors import PreflightError
from flagvega.platform import Chip, Device, Telemetry, platforms
from hardware.torch_device import TorchDevice
from hardware.vendor import VendorPlatform

NAMES = platforms.names()
VENDORS = [name for name in NAMES if isinstance(platforms.get(name), VendorPlatform)]
ASKED = [name for name in VENDORS if name != "nvidia"]
"""Vendors whose devices their own torch is asked for."""


def device_of(name: str) -> Device:
    return importlib.import_module(f"hardware.{name}.device").device


def write_tool(folder: Path, name: str, text: str) -> None:
    (folder / "printed").write_text(text)
    tool = folder / name
    tool.write_text(f"#!/bin/sh\nexec cat '{folder}/printed'\n")
    tool.chmod(0o755)


@pytest.fixture
def vendor_host(tmp_path, monkeypatch):
    """Make this host look like one of a vendor: its torch, its module and its tool, with two devices of a name."""

    def make(name: str, device_name: str = "", printed: str = "") -> None:
        platform = platforms.get(name)
        lines = [
            "class Properties:",
            "    total_memory = 1 << 30",
            "class Devices:",
            "    is_available = staticmethod(lambda: True)",
            "    device_count = staticmethod(lambda: 2)",
            f"    get_device_name = staticmethod(lambda i: {device_name!r})",
            "    get_device_properties = staticmethod(lambda i: Properties)",
        ]
        (tmp_path / "torch.py").write_text("\n".join([*lines, f"{platform.namespace} = Devices"]))
        module = platform.module or {"intel": "intel_extension_for_pytorch"}.get(name, "torch_xmlir")
        package = tmp_path.joinpath(*module.split("."))
        package.mkdir(parents=True)
        for folder in (package, *package.relative_to(tmp_path).parents):
            (tmp_path / folder / "__init__.py").write_text("print('a vendor says hello')")
        write_tool(tmp_path, platform.tool, printed)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.syspath_prepend(tmp_path)

    return make


@pytest.mark.parametrize("name", NAMES)
def test_a_platform_says_what_it_is(name):
    platform = platforms.get(name)
    assert platform.name == name
    assert platform.collective_backend
    assert platform.precedence in (0, 1, 2, 3)
    assert all(isinstance(platform.supports(feature), bool) for feature in ("bf16", "flash_attn", "no such feature"))
    assert platform.chips()
    for chip_name, chip in platform.chips().items():
        assert isinstance(chip, Chip)
        assert (chip.name, chip.vendor) == (chip_name, name)
        assert all(isinstance(item, str) for pair in platform.env(chip_name, 1, 2).items() for item in pair)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("cpu", "nvidia")])
def test_a_platform_that_is_not_here_finds_nothing_and_reads_nothing(name):
    platform = platforms.get(name)
    assert platform.detect() == []
    assert platform.telemetry(0) == Telemetry()
    assert platform.link(0) == ""


def test_only_what_ran_is_called_tested():
    assert {name for name in NAMES if platforms.get(name).tested} == {"cpu", "emulated", "null"}


@pytest.mark.parametrize("name", ASKED)
def test_a_vendors_devices_are_those_that_its_torch_sees(name, vendor_host):
    vendor_host(name, "Unheard Of")
    found = platforms.get(name).detect()
    assert [(device.vendor, device.index, device.chip, device.memory_bytes) for device in found] == [
        (name, 0, name, 1 << 30),
        (name, 1, name, 1 << 30),
    ]


def test_a_vendor_whose_torch_does_not_answer_has_no_devices_and_says_why(vendor_host, tmp_path, caplog):
    vendor_host("ascend")
    (tmp_path / "torch.py").write_text("raise OSError('libascendcl.so: cannot open shared object file')")
    assert platforms.get("ascend").detect() == []
    assert "libascendcl.so" in caplog.text


def test_a_tool_of_two_vendors_does_not_decide_between_them(tmp_path, monkeypatch):
    write_tool(tmp_path, "xpu-smi", "")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert not platforms.get("kunlunxin").present()
    assert not platforms.get("intel").present()


def test_a_hygon_host_is_not_an_amd_host(tmp_path, monkeypatch):
    write_tool(tmp_path, "rocm-smi", "")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert platforms.get("amd").present()
    write_tool(tmp_path, "hy-smi", "")
    assert not platforms.get("amd").present()


class StandInNamespace(types.SimpleNamespace):
    """As much of ``torch.cuda`` as a device asks for; a mock: these chips are not here."""

    def __init__(self, count: int) -> None:
        super().__init__(taken=None, device_count=lambda: count, max_memory_allocated=lambda: 42)

    def set_device(self, device: tuple[str, int]) -> None:
        self.taken = device


@pytest.mark.parametrize("name", VENDORS)
def test_a_vendors_rank_takes_its_device_from_the_vendors_namespace(name, monkeypatch):
    device = device_of(name)
    assert isinstance(device, TorchDevice)
    namespace = StandInNamespace(4)
    stand_in = types.SimpleNamespace(__version__="0", device=lambda *taken: taken, **{device.type: namespace})
    monkeypatch.setattr(hardware.torch_device, "torch", stand_in)
    if device.module:
        for module in (device.module.partition(".")[0], device.module):
            monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    assert device.open(name, 5) == (device.type, 1)
    assert namespace.taken == (device.type, 1)
    assert device.namespace is namespace
    assert device.peak_bytes() == 42
    device.pace("layer_fwd", 1e30, 1e30)
    assert (device.duration_s("layer_fwd", 1e30, 1e30), device.timing_verdict()) == (0.0, "")


@pytest.mark.parametrize("name", ["ascend", "intel_gaudi"])
def test_a_chip_whose_software_is_missing_is_refused_before_the_run(name):
    with pytest.raises(PreflightError, match=device_of(name).module):
        device_of(name).open(name, 0)


def test_a_rank_is_refused_where_torch_shows_no_device(monkeypatch):
    stand_in = types.SimpleNamespace(__version__="2.6", cuda=StandInNamespace(0))
    monkeypatch.setattr(hardware.torch_device, "torch", stand_in)
    with pytest.raises(PreflightError, match=r"torch 2\.6 shows no cuda device"):
        device_of("metax").open("c500", 0)


def test_nothing_runs_on_null():
    with pytest.raises(PreflightError, match="dryrun"):
        device_of("null").open("null", 0)


# What the tools print, as far as public monitors show it (FlagOpen/FlagPerf base/vendors; Intel's hl-smi guide).
ASCEND = """\
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B3               | OK            | 96.9        46                0    / 0             |
| 0                         | 0000:C1:00.0  | 35          0    / 0          3352 / 65536         |
+===========================+===============+====================================================+
"""
MOORE_THREADS = """\
    GPU Current Temp                   : 41C
    Power Draw                         : 76.5W
    Total                              : 49152MiB
    Used                               : 2048MiB
    Gpu                                : 12%
"""
KUNLUNXIN = "0000:53:00.0 0 0 0 47 0 0 0 89 0 0 0 0 0 0 0 0 1024 98304 55 0\n"
AMD = json.dumps(
    {
        "card0": {
            "Temperature (Sensor junction) (C)": "44.0",
            "Average Graphics Package Power (W)": "120.0",
            "GPU use (%)": "25",
            "VRAM Total Memory (B)": "206141652992",
            "VRAM Total Used Memory (B)": "1048576",
        },
        "system": {"Driver version": "6"},
    }
)
HYGON = "HCU Temp AvgPwr Perf PwrCap VRAM% HCU% Mode\n0    47.0C  93.0W  auto  400.0W  10%  30%  Normal\n"
MIB = 2**20


@pytest.mark.parametrize(
    ("name", "printed", "reading"),
    [
        ("ascend", ASCEND, Telemetry(3352 * MIB, 0.35, 46.0, 96.9)),
        ("moore_threads", MOORE_THREADS, Telemetry(2048 * MIB, 0.12, 41.0, 76.5)),
        ("kunlunxin", KUNLUNXIN, Telemetry(1024 * MIB, 0.55, 47.0, 89.0)),
        ("amd", AMD, Telemetry(MIB, 0.25, 44.0, 120.0)),
        ("hygon", HYGON, Telemetry(None, 0.3, 47.0, 93.0)),
        ("intel_gaudi", "512, 20, 50, 300\n", Telemetry(512 * MIB, 0.2, 50.0, 300.0)),
    ],
)
def test_a_vendors_tool_is_read(name, printed, reading, vendor_host):
    vendor_host(name, printed=printed)
    assert platforms.get(name).telemetry(0) == reading
    assert platforms.get(name).telemetry(1) == Telemetry()


def test_a_tool_that_prints_something_else_gives_no_reading(vendor_host):
    vendor_host("intel_gaudi", printed="No device found\n")
    assert platforms.get("intel_gaudi").telemetry(0) == Telemetry()


def test_a_tools_number_of_a_device_follows_the_visible_devices_variable(vendor_host, monkeypatch):
    vendor_host("intel_gaudi", printed="1, 0, 0, 0\n2, 0, 0, 0\n")
    monkeypatch.setenv("HABANA_VISIBLE_MODULES", "1")
    assert platforms.get("intel_gaudi").telemetry(0).used_bytes == 2 * MIB
