"""The fitted constants: the committed table is the fit, and costs rise where they must."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from flagvega.model.shape import Experts, ModelShape
from flagvega.model.workload import Kernels, Workload
from flagvega.plan.analytic import AnalyticCosts
from flagvega.plan.calibration import Calibration, calibration
from flagvega.plan.costs import Degrees
from flagvega.plan.machine import Group, Link, Machine
from flagvega.plan.memory import held
from tools.bench.cost_model import SOURCE_HEAD, as_table, by_source
from tools.bench.fitting import errors
from tools.bench.measured_runs import Constants, read_runs

ROOT = Path(__file__).parents[3]
WORK = Workload(ModelShape(8, 4096, 32, 8, 128, 14336, 128256), 4096, "bf16", 64, 64, 4, 12)


def costs(chip: str = "a100-sxm-80g", flops_per_s: float = 3e14, gb_s: float = 300.0) -> AnalyticCosts:
    group = Group(chip, (8, 8), 80 * 2**30, flops_per_s, 2e12, Link(1e-5, gb_s * 1e9), Link(5e-5, 25e9))
    return AnalyticCosts(WORK, Machine((group,)), True)


@pytest.mark.slow
def test_the_committed_table_is_what_the_fit_prints() -> None:
    command = [sys.executable, "tools/bench/cost_model.py", "--fit"]
    fitted = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert fitted == (ROOT / "flagvega" / "plan" / "calibration.yaml").read_text(encoding="utf-8")


def test_the_table_in_the_docs_is_what_the_command_prints() -> None:
    runs, _ = read_runs()
    written = (ROOT / "docs" / "planner.md").read_text(encoding="utf-8")
    assert as_table(SOURCE_HEAD, by_source(runs, Constants(calibration()))) in written


def test_memory_of_published_runs_is_predicted_within_a_per_cent_without_any_constant() -> None:
    runs = [run for run in read_runs()[0] if run.source == "SimuMax" and run.metric == "memory"]
    off = errors(runs, Constants(calibration()))
    assert {run.family for run in runs} == {"llama3-70b", "llama3-405b", "deepseek-v2", "deepseek-v3"}
    assert max(off) <= 0.01


def test_attention_computed_again_costs_time_and_unfused_attention_memory_and_time() -> None:
    fused, again, unfused = (
        AnalyticCosts(replace(WORK, kernels=kernels), costs().machine, True)
        for kernels in (Kernels(), Kernels(repeats_attention=True), Kernels(keeps_scores=True))
    )
    forward, backward = ([its.forward_s(0, "dense", Degrees(), 1), its.backward_s(0, "dense", Degrees(), 1)]
                         for its in (fused, again))  # fmt: skip
    assert forward[0] == backward[0]
    assert forward[1] < backward[1]
    assert unfused.forward_s(0, "dense", Degrees(), 1) > forward[0]
    scores = 4096 * 4096 * 32 * 2
    kept, repeated = (
        held(replace(WORK, kernels=Kernels(keeps_scores=True, repeats_attention=again)), "dense", Degrees(), 1)
        for again in (False, True)
    )
    assert kept.activation - repeated.activation == scores


def test_tokens_sent_between_nodes_take_longer_than_within_one() -> None:
    shape = replace(WORK.shape, experts=Experts(16, 2, 1024))
    its = AnalyticCosts(replace(WORK, shape=shape), costs().machine, True)
    within, across = (its.forward_s(0, "experts", Degrees(ep=ep, dp=16), 1) for ep in (8, 16))
    assert within < across


def test_no_chip_sustains_more_than_its_peak() -> None:
    table = calibration()
    assert all(0 < share < 1 for share in table.efficiency.values())
    assert all(0 < share <= 1 for share in table.attention.values())
    assert 0 < table.link_share <= 1


def test_a_chip_that_was_never_fitted_gets_the_median() -> None:
    table = Calibration({("a", "bf16"): 0.3, ("b", "bf16"): 0.5, ("c", "bf16"): 0.6, ("c", "tf32"): 0.1}, 0.0, 1.0)
    assert table.efficiency_of("unheard-of", "bf16") == 0.5
    assert table.efficiency_of("a", "fp16") == 0.3
    assert table.efficiency_of("c", "fp32") == 0.5


def test_a_prediction_names_the_error_to_expect_chip_by_chip() -> None:
    table = Calibration({("a", "bf16"): 0.3}, 0.0, 1.0, held_out_error={("a", "bf16"): 0.064})
    assert table.describe(["a", "b", "a"], "bf16").endswith("not fitted: a 6%, b never compared with runs")


@pytest.mark.parametrize("kind", ["dense", "head", "embedding"])
def test_more_samples_take_longer_and_a_faster_chip_less(kind: str) -> None:
    times = [costs().forward_s(0, kind, Degrees(), samples) for samples in (1, 2, 4)]  # type: ignore[arg-type]
    assert all(a < b for a, b in pairwise(times))
    slow, fast = (costs(flops_per_s=rate).forward_s(0, kind, Degrees(), 1) for rate in (1e14, 9e14))  # type: ignore[arg-type]
    assert fast <= slow


def test_cutting_a_layer_over_tp_saves_less_than_its_share() -> None:
    whole, half = (costs().forward_s(0, "dense", Degrees(tp=tp, sp=tp > 1), 1) for tp in (1, 2))
    assert whole / 2 < half


def test_a_slower_link_makes_tp_slower() -> None:
    fast, slow = (costs(gb_s=rate).forward_s(0, "dense", Degrees(tp=4, sp=True), 1) for rate in (300, 30))
    assert fast < slow


def test_rings_between_nodes_share_all_ports_of_a_node() -> None:
    narrow, wide = (costs().reduction_s(0, Degrees(tp=tp, dp=16 // tp), 1e9, 0.0, 0.0) for tp in (8, 1))
    assert wide < narrow
