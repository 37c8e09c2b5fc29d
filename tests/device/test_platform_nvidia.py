from __future__ import annotations

import torch

from flagvega.platform import detect_devices, find_chip, platforms
from hardware.nvidia.device import device


def test_the_control_side_finds_what_torch_sees():
    found = [each for each in detect_devices() if each.vendor == "nvidia"]
    assert [each.name for each in found] == [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    for i, each in enumerate(found):
        assert each.memory_bytes is not None
        total = torch.cuda.get_device_properties(i).total_memory
        assert abs(each.memory_bytes / total - 1) < 0.05
        assert find_chip(each.chip).vendor == "nvidia"


def test_a_reading_shows_used_memory_and_power():
    opened = device.open("nvidia", 0)
    held = torch.zeros(2**28, device=opened)
    reading = platforms.get("nvidia").telemetry(0)
    assert reading.used_bytes is not None
    assert reading.used_bytes >= held.nbytes
    assert reading.power_w
    assert device.peak_bytes() >= held.nbytes


def test_versions_and_the_link_are_told():
    platform = platforms.get("nvidia")
    assert platform.versions()["driver"]
    assert "PCIe" in platform.link(0) or "NVLink" in platform.link(0)


def test_the_namespace_is_torch_cuda_itself():
    assert device.namespace is torch.cuda
