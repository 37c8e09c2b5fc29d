"""The plug-in that paces vLLM like an emulated chip: its parts that need no vLLM."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib.metadata import distributions
from pathlib import Path

import pytest

from flagvega.platform import platforms
from flagvega.records import read_json
from hardware.emulated.platform import VLLM_PLUGIN
from hardware.emulated.vllm_plugin.flagvega_emulated.pace import Pace, StepCurve, read_memory_bytes, read_step_curve

EMULATED = platforms.get("emulated")
CURVE = StepCurve(
    launch_s=0.01,
    weights_s=0.02,
    sequence_s=0.001,
    prompt_tokens_per_s=1000,
    tp_efficiency={1: 1.0, 2: 0.5},
    jitter=0.0,
    seed=1,
)


def test_a_step_takes_longer_with_sequences_and_prompts_and_its_work_is_shared() -> None:
    assert CURVE.duration_s(0, 0) == pytest.approx(0.03)
    assert CURVE.duration_s(10, 0) == pytest.approx(0.04)
    assert CURVE.duration_s(10, 100) == pytest.approx(0.14)
    assert CURVE.duration_s(10, 100, tp=4) == pytest.approx(0.01 + 0.13 / 2)


@pytest.mark.parametrize("chip", sorted(EMULATED.chips()))
def test_every_emulated_chip_has_steps_that_a_host_can_keep_up_with(chip: str) -> None:
    assert read_step_curve(chip).duration_s(1, 0) >= 0.04
    assert read_memory_bytes(chip) == EMULATED.chips()[chip].memory_bytes


def test_steps_take_the_chips_time_on_average_though_each_computes_for_a_while(tmp_path: Path) -> None:
    pace, began = Pace("emu-l", CURVE, "0", file=tmp_path / "count.json"), time.perf_counter()
    for i in range(5):
        pace.begin(10, 0, follows=i > 0)
        time.sleep(0.005)
        pace.end()
        time.sleep(0.002)  # what an engine does between steps
    assert time.perf_counter() - began == pytest.approx(0.2, abs=0.02)
    pace.end()  # no step began
    pace.write()
    count = read_json(tmp_path / "count.json")
    assert count["steps"] == 5
    assert count["chip_s"] == pytest.approx(0.2)


def test_a_host_that_is_slower_than_the_chip_is_told() -> None:
    pace = Pace("emu-l", CURVE, "0")
    pace.begin(0, 0, follows=False)
    time.sleep(0.05)
    pace.end()
    time.sleep(0.03)
    pace.begin(0, 0, follows=True)
    pace.end()
    assert pace.count.late_steps == 2
    assert pace.count.late_s >= 0.05
    assert "the host was late 2 times" in str(pace.count)


def test_time_between_requests_is_not_the_hosts_fault() -> None:
    pace = Pace("emu-l", CURVE, "0")
    for _ in range(2):
        pace.begin(0, 0, follows=False)
        pace.end()
        time.sleep(0.05)
    assert pace.count.late_steps == 0


def test_jitter_repeats_with_the_instance() -> None:
    def drawn(name: str) -> float:
        pace = Pace("emu-l", StepCurve(0.0, 1e-6, 0.0, 1e9, {1: 1.0}, 0.1, 1), name)
        pace.begin(0, 0, follows=False)
        pace.end()
        return pace.count.chip_s

    assert drawn("0") == drawn("0") != drawn("1")


def test_a_python_finds_the_plug_in_by_its_path_alone_and_it_leaves_other_runs_alone() -> None:
    found = [each for each in distributions(path=[str(VLLM_PLUGIN)]) if each.entry_points]
    (entry,) = found[0].entry_points.select(group="vllm.platform_plugins")
    program = "import flagvega_emulated as plugin; print(plugin.register())"
    env = {"PYTHONPATH": str(VLLM_PLUGIN)}
    for chip, expected in (("emu-s", "flagvega_emulated.platform.EmulatedPlatform"), ("", "None")):
        given = {**env, "FLAGVEGA_EMULATED_CHIP": chip}
        done = subprocess.run([sys.executable, "-c", program], env=given, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected
    assert entry.value == "flagvega_emulated:register"


def test_an_instance_gets_the_plug_in_its_chip_and_no_target_that_bypasses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/mine")
    serving = EMULATED.serving("vllm")
    assert serving is not None
    env = {**serving.env, **EMULATED.serving_env("emu-m", [0], 1, 3, 4)}
    assert env["PYTHONPATH"].split(os.pathsep) == [str(VLLM_PLUGIN), "/mine"]
    assert (env["FLAGVEGA_EMULATED_CHIP"], env["FLAGVEGA_EMULATED_PLACE"]) == ("emu-m", "3")
    assert env["VLLM_TARGET_DEVICE"] == ""
    assert "VLLM_CPU_KVCACHE_SPACE" not in env
    assert env["VLLM_PLUGINS"] == "flagvega_emulated"
    assert EMULATED.serving("another") is None
