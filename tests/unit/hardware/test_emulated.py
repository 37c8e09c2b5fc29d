from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import torch

from flagvega.errors import PreflightError
from flagvega.platform import find_chip, platforms
from hardware.emulated.clock import Clock, judge
from hardware.emulated.curves import Curve, Line, read_curve
from hardware.emulated.device import NUM_LIMITED_STEPS, EmulatedDevice

MIB = 2**20
CHIPS = sorted(platforms.get("emulated").chips())
CURVE = Curve(
    launch_s=0.01,
    flops_per_s=1e9,
    half_flops=0.0,
    tp_efficiency={1: 1.0},
    kind_efficiency={},
    bytes_per_s=1e9,
    collective=Line(0.001, 1e9),
    transfer=Line(0.001, 1e9),
    jitter=0.0,
    seed=1,
)


@pytest.fixture
def small() -> Iterator[EmulatedDevice]:
    """An emu-s of this test's own, left in the end."""
    device = EmulatedDevice()
    device.open("emu-s", 0)
    yield device
    for step in range(NUM_LIMITED_STEPS + 1):
        device.begin_step(step)  # no matter how many there were: it leaves once


def test_the_chips_are_emulated_each_with_its_curve():
    fast = ["emu-l", "emu-m", "emu-s"]
    assert sorted([*fast, *(f"{chip}-slow" for chip in fast)]) == CHIPS
    assert len({read_curve(chip).duration_s("layer_fwd", 1e8, 1e6, 1) for chip in CHIPS}) == 6


@pytest.mark.parametrize("chip", ["emu-l", "emu-m", "emu-s"])
def test_a_slow_chip_takes_three_times_as_long_for_everything(chip):
    fast, slow = read_curve(chip), read_curve(f"{chip}-slow")
    for kind in ("layer_fwd", "layer_bwd", "head_fwd", "optimizer", "collective", "transfer"):
        for work in ((1e6, 1e4), (1e8, 1e7), (1e6, 1e8)):
            assert slow.duration_s(kind, *work, 2) == pytest.approx(3 * fast.duration_s(kind, *work, 2), rel=1e-3)
    facts, same = find_chip(chip), find_chip(f"{chip}-slow")
    assert same.peak_flops["fp32"] == pytest.approx(facts.peak_flops["fp32"] / 3, rel=1e-3)
    assert same.memory_bytes == facts.memory_bytes


@pytest.mark.parametrize("chip", CHIPS)
def test_no_chip_sustains_what_its_data_sheet_says(chip):
    facts, curve = find_chip(chip), read_curve(chip)
    assert facts.peak_flops is not None
    assert 1e12 / curve.duration_s("layer_fwd", 1e12, 0.0, 1) < facts.peak_flops["fp32"]
    assert 1e12 / curve.duration_s("layer_fwd", 0.0, 1e12, 1) < (facts.memory_bytes_per_s or 0)


@pytest.mark.parametrize("chip", CHIPS)
def test_small_matrices_and_matrices_cut_over_ranks_are_less_efficient(chip):
    curve = read_curve(chip)
    rates = [flops / curve.duration_s("layer_fwd", flops, 0.0, 1) for flops in (1e6, 1e7, 1e8, 1e9)]
    assert rates == sorted(rates)
    durations = [curve.duration_s("layer_fwd", 1e8, 0.0, tp) for tp in (1, 2, 3, 4, 8)]
    assert durations == sorted(durations)
    assert durations[1] == durations[2]


def test_work_takes_the_longer_of_its_products_and_its_bytes():
    assert CURVE.duration_s("layer_fwd", 1e9, 5e8, 1) == pytest.approx(1.01)
    assert CURVE.duration_s("layer_fwd", 5e8, 2e9, 1) == pytest.approx(2.01)
    assert CURVE.duration_s("transfer", 0.0, 1e9, 1) == pytest.approx(1.001)


def test_a_chip_without_a_curve_is_refused():
    with pytest.raises(PreflightError, match="emu-xl"):
        EmulatedDevice().open("emu-xl", 0)


def test_work_takes_the_chips_time_whatever_part_of_it_the_cpu_needed():
    clock = Clock(CURVE, "0/0")
    begin_s = time.perf_counter()
    clock.begin()
    for _ in range(5):
        time.sleep(0.01)
        clock.pace("layer_fwd", 2e7, 0.0, 1)
    # The sum of both would be 0.2 s; a busy host adds what it counts as overrun.
    assert 0.149 <= time.perf_counter() - begin_s - clock.overrun_s < 0.19


def test_waiting_before_begin_is_not_the_chips_work():
    clock = Clock(CURVE, "0/0")
    time.sleep(0.05)
    clock.begin()
    begin_s = time.perf_counter()
    clock.pace("layer_fwd", 2e7, 0.0, 1)
    assert time.perf_counter() - begin_s >= 0.0299


def test_a_cpu_slower_than_the_chip_is_counted_and_makes_the_timings_invalid():
    clock = Clock(CURVE, "0/0")
    clock.begin()
    time.sleep(0.05)
    clock.pace("layer_fwd", 1e6, 0.0, 1)
    assert clock.num_overruns == 1
    assert clock.overrun_s > 0.038
    assert "longer than the emulated chip" in judge(clock, cpu_share=0.1)


def test_an_idle_chip_that_is_late_by_next_to_nothing_does_not_make_the_timings_invalid():
    clock = Clock(CURVE, "0/0")
    clock.chip_s, clock.overrun_s = 0.001, 0.002
    assert judge(clock, cpu_share=0.1)
    clock._since_s -= 1.0  # as if it had waited for its neighbours for a second
    assert judge(clock, cpu_share=0.1) == ""


def test_waiting_for_other_ranks_is_no_fault_of_the_host():
    clock = Clock(CURVE, "0/0")
    clock.begin()
    time.sleep(0.02)
    clock.pace("collective", 0.0, 1e3, 1)
    assert (clock.num_overruns, clock.chip_s, judge(clock, cpu_share=0.1)) == (0, 0.0, "")


def test_a_busy_host_makes_the_timings_invalid():
    clock = Clock(CURVE, "0/0")
    assert judge(clock, cpu_share=0.59) == ""
    assert "61%" in judge(clock, cpu_share=0.61)


def test_jitter_differs_between_devices_and_repeats_with_the_run():
    def durations(name: str) -> list[float]:
        curve = read_curve("emu-l")
        clock, found = Clock(curve, name), []
        for _ in range(4):
            before_s = clock.chip_s
            clock.pace("layer_fwd", 1e4, 0.0, 1)
            found.append(clock.chip_s - before_s)
        return found

    assert durations("0/0") == durations("0/0") != durations("0/1")
    assert len(set(durations("0/0"))) == 4


def test_live_storage_is_counted_once_and_only_while_it_lives(small):
    tensor = torch.zeros(MIB)
    view = tensor.view(2, -1)[1]
    assert small.peak_bytes() == 4 * MIB
    del tensor
    second = torch.zeros(MIB)
    assert small.peak_bytes() == 8 * MIB
    del view, second
    assert torch.zeros(2 * MIB).numel()
    assert small.peak_bytes() == 8 * MIB


def test_a_model_that_does_not_fit_runs_out_of_memory_like_on_a_chip(small):
    with pytest.raises(torch.OutOfMemoryError, match=r"emu-s out of memory\. Tried to allocate 64\.00 MiB"):
        _ = [torch.zeros(16 * MIB) for _ in range(5)]
    assert torch.zeros(32 * MIB).numel(), "what did not fit is free again"


def test_backward_runs_out_of_memory_too(small):
    weight = torch.zeros(30 * MIB, requires_grad=True)
    product = weight * 2
    with pytest.raises(torch.OutOfMemoryError):
        product.sum().backward()


def test_memory_is_not_watched_after_the_first_steps(small):
    for step in range(NUM_LIMITED_STEPS + 1):
        small.begin_step(step)
    assert len([torch.zeros(16 * MIB) for _ in range(5)]) == 5
    assert small.peak_bytes() == 0


def test_the_steps_that_warm_up_are_not_judged(small):
    small.begin_step(0)
    time.sleep(0.03)
    small.pace("layer_fwd", 1e3, 0.0)
    assert small.timing_verdict() == ""
    for step in range(1, NUM_LIMITED_STEPS + 1):
        small.begin_step(step)
    time.sleep(0.03)
    small.pace("layer_fwd", 1e3, 0.0)
    assert "longer than the emulated chip" in small.timing_verdict()


def test_the_computation_is_that_of_the_cpu(small):
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    loss = (weight @ weight.T).softmax(-1).square().sum()
    loss.backward()
    watched = (loss.detach().clone(), weight.grad.clone())
    for step in range(NUM_LIMITED_STEPS + 1):
        small.begin_step(step)
    weight.grad = None
    loss = (weight @ weight.T).softmax(-1).square().sum()
    loss.backward()
    assert torch.equal(watched[0], loss)
    assert torch.equal(watched[1], weight.grad)


BURN = """
import os, time
from hardware.emulated.clock import HostLoad, num_cores
load, begin = HostLoad(), time.monotonic()
reader, writer = os.pipe()
if os.fork() == 0:
    while time.process_time() < 0.4: pass
    os.write(writer, b"done")
    time.sleep(60)
os.read(reader, 4)
print(load.share() * num_cores() * (time.monotonic() - begin))
"""


def test_the_cpu_time_of_all_the_launchers_ranks_is_counted():
    # The launcher whose ranks are counted is the shell, which takes the sleeping one with it.
    argv = ["/bin/sh", "-c", '"$0" -c "$1"; true', sys.executable, BURN]
    launcher = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert launcher.stdout is not None
    burnt_s = float(launcher.stdout.readline())
    os.killpg(launcher.pid, signal.SIGKILL)
    launcher.communicate()
    assert 0.35 <= burnt_s < 2.0
