from __future__ import annotations

from types import SimpleNamespace

import pynvml
import pytest

from flagvega.platform import platforms
from hardware.nvidia.visible import NvmlDevice, select_visible

GPUS = [NvmlDevice(i, f"GPU-{letter}0000000-0000", f"NVIDIA {letter}", 80) for i, letter in enumerate("abcd")]
SLICES = {GPUS[3].uuid: [NvmlDevice(30 + i, f"MIG-{i}1111111", "NVIDIA MIG", 10, parent=3) for i in (0, 1)]}


@pytest.mark.parametrize(
    ("visible", "handles"),
    [
        (None, [0, 1, 2, 30]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("2,0", [2, 0]),
        (" 2, 1", [2, 1]),
        ("0,9,1", [0]),
        ("1,-1,0", [1]),
        ("GPU-b", [1]),
        ("GPU-c0000000-0000,GPU-a", [2, 0]),
        ("GPU-", []),
        ("MIG-1", [31]),
        ("MIG-0,MIG-1", [30, 31]),
        ("3", [30]),
    ],
)
def test_cuda_sees_what_cuda_visible_devices_says_until_its_first_mistake(visible, handles):
    assert [device.handle for device in select_visible(GPUS, SLICES, visible)] == handles


@pytest.fixture
def nvml(monkeypatch):
    """A stand-in driver with an H200, an L4 and another vendor's imitation."""
    cards = [("NVIDIA H200", 140, 0x233510DE), ("NVIDIA L4", 23, 0x27B810DE), ("Iluvatar BI-V150", 64, 0x00011E3E)]

    def not_supported(*_):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    answers = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: "570.1",
        "nvmlSystemGetCudaDriverVersion": lambda: 12080,
        "nvmlDeviceGetCount": lambda: len(cards),
        "nvmlDeviceGetHandleByIndex": lambda i: i,
        "nvmlDeviceGetUUID": lambda i: f"GPU-{i}",
        "nvmlDeviceGetName": lambda i: cards[i][0],
        "nvmlDeviceGetMemoryInfo": lambda i: SimpleNamespace(total=cards[i][1] << 30, used=1 << 30),
        "nvmlDeviceGetPciInfo": lambda i: SimpleNamespace(pciDeviceId=cards[i][2]),
        "nvmlDeviceGetMigMode": not_supported,
        "nvmlDeviceGetUtilizationRates": lambda i: SimpleNamespace(gpu=50),
        "nvmlDeviceGetTemperature": lambda i, sensor: 40,
        "nvmlDeviceGetPowerUsage": not_supported,
        "nvmlDeviceGetNvLinkState": lambda i, link: 1 if i == 0 else not_supported(),
        "nvmlDeviceGetMaxPcieLinkGeneration": lambda i: 5,
        "nvmlDeviceGetMaxPcieLinkWidth": lambda i: 16,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_nvidias_devices_are_found_and_imitations_are_not(nvml):
    found = platforms.get("nvidia").detect()
    assert [(device.index, device.chip, device.driver) for device in found] == [
        (0, "h200-sxm", "570.1"),
        (1, "l4", "570.1"),
    ]


def test_a_device_is_read_by_the_number_that_cuda_gives_it(nvml, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    platform = platforms.get("nvidia")
    assert [device.chip for device in platform.detect()] == ["l4", "h200-sxm"]
    assert platform.link(0) == "PCIe 5 x16"
    assert platform.link(1) == f"{pynvml.NVML_NVLINK_MAX_LINKS} NVLinks, PCIe 5 x16"
    assert platform.link(2) == ""


def test_what_a_device_does_not_tell_is_none(nvml):
    reading = platforms.get("nvidia").telemetry(1)
    assert (reading.used_bytes, reading.utilization, reading.temperature_c, reading.power_w) == (1 << 30, 0.5, 40, None)


def test_versions_name_the_driver_and_the_cuda_it_supports(nvml):
    versions = platforms.get("nvidia").versions()
    assert (versions["driver"], versions["cuda driver"]) == ("570.1", "12.8")
