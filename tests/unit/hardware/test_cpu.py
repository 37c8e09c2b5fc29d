from __future__ import annotations

import time

import pytest
import torch

from flagvega.platform import detect_devices, platforms
from hardware.cpu.device import CpuDevice, device


def test_the_host_is_a_device_only_where_there_is_no_accelerator(monkeypatch):
    monkeypatch.setattr(type(platforms.get("nvidia")), "detect", lambda self: [])
    assert [found.chip for found in detect_devices()] == ["cpu"]
    gpu = platforms.get("nvidia").describe(0, "NVIDIA H200", 140 * 2**30)
    monkeypatch.setattr(type(platforms.get("nvidia")), "detect", lambda self: [gpu])
    assert detect_devices() == [gpu]


def test_the_ranks_of_a_host_share_its_cores():
    platform = platforms.get("cpu")
    alone = int(platform.env("cpu", 0, 1)["OMP_NUM_THREADS"])
    assert alone >= int(platform.env("cpu", 0, 2)["OMP_NUM_THREADS"]) >= 1
    assert platform.env("cpu", 0, 10_000)["OMP_NUM_THREADS"] == "1"
    assert platform.telemetry(0).used_bytes


def test_a_rank_gets_the_cpu_and_tensors_land_there():
    opened = CpuDevice().open("cpu", 3)
    assert torch.zeros(1, device=opened).device.type == "cpu"
    assert torch.zeros(1, device=device.namespace.current_device()).device.type == "cpu"
    assert device.peak_bytes() > 0


def test_the_namespace_has_no_cuda_and_one_stream():
    cuda = device.namespace
    assert not cuda.is_available()
    assert cuda.device_count() == 1
    assert cuda.get_device_capability() == (0, 0)
    assert not cuda.is_current_stream_capturing()
    cuda.synchronize()
    with cuda.stream(cuda.Stream()):
        cuda.current_stream().wait_stream(cuda.default_stream())
    assert cuda.current_stream().record_event().query()


def test_events_measure_milliseconds():
    start, end = device.namespace.Event(enable_timing=True), device.namespace.Event(enable_timing=True)
    start.record()
    time.sleep(0.02)
    end.record()
    assert 20 <= start.elapsed_time(end) < 2000


def test_the_device_generator_is_torchs_own():
    cuda = device.namespace
    with torch.random.fork_rng(devices=[]):
        cuda.manual_seed(7)
        state = cuda.get_rng_state()
        first = torch.rand(4)
        cuda.set_rng_state(state)
        assert torch.equal(first, torch.rand(4))
        torch.manual_seed(7)
        assert torch.equal(first, torch.rand(4))


def test_memory_is_that_of_the_process_under_cudas_names():
    cuda = device.namespace
    stats = cuda.memory_stats()
    assert cuda.memory_allocated() > 0
    assert stats["allocated_bytes.all.peak"] >= stats["allocated_bytes.all.current"] > 0
    free, total = cuda.mem_get_info()
    assert 0 < free < total == cuda.get_device_properties().total_memory


def test_what_has_no_meaning_on_a_cpu_is_torch_cudas_own():
    assert device.namespace.FloatTensor is torch.cuda.FloatTensor
    with pytest.raises(AttributeError):
        _ = device.namespace.no_such_thing
