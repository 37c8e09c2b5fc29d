"""Measured costs: the files they come in, and what the planner makes of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagvega.errors import ConfigError
from flagvega.model.shape import Experts, ModelShape
from flagvega.model.workload import Workload
from flagvega.plan.analytic import AnalyticCosts
from flagvega.plan.costs import Degrees, Side
from flagvega.plan.machine import Group, Link, Machine
from flagvega.plan.measured import MeasuredCosts, fit_line, interpolate, with_measured_links
from flagvega.plan.profile import (
    CollectiveRow,
    LayerRow,
    LinkRow,
    OptimizerRow,
    OverheadRow,
    Profile,
    Validity,
    misfits,
    validity_of,
)
from flagvega.plan.tables import profile_from_json, profile_to_csv, profile_to_json, read_profile

SHAPE = ModelShape(4, 128, 4, 4, 32, 352, 512)
WORK = Workload(SHAPE, 64, "fp32", 8, 8, 4, 8)
ASSUMED = Link(1e-4, 1e7)
MACHINE = Machine(
    (
        Group("emu-l", (4,), 10**9, 1e10, 4e9, Link(1e-5, 5e8), Link(5e-5, 1e8)),
        Group("emu-s", (2,), 10**9, 1e10, 4e9, Link(1e-5, 5e8), Link(5e-5, 1e8)),
    ),
    {(0, 1): ASSUMED, (1, 0): ASSUMED},
)
LAYERS = tuple(
    LayerRow("emu-l", tp, size, forward_s * size / tp, 2 * forward_s * size / tp, kind, sp=tp > 1,
             activation_bytes=1000.0 * size / tp)
    for tp in (1, 2)
    for size in (1, 2, 4)
    for kind, forward_s in (("embedding", 1e-3), ("dense", 1e-2), ("head", 3e-2))
)  # fmt: skip
PROFILE = Profile(
    layers=LAYERS,
    optimizer=(OptimizerRow("emu-l", 1000, 0.002), OptimizerRow("emu-l", 3000, 0.004)),
    links=(LinkRow("emu-l", "emu-s", 0.001, 1e8), LinkRow("emu-l", "emu-l", 0.002, 2e8)),
    collectives=(CollectiveRow("emu-l", 4, 1e-4, 3e8),),
    overheads=(OverheadRow("emu-l", 0.01),),
    valid=validity_of(WORK, "an engine 1.0", "2026-01-02"),
)


def costs(profile: Profile = PROFILE, work: Workload = WORK) -> MeasuredCosts:
    return MeasuredCosts(profile, AnalyticCosts(work, with_measured_links(MACHINE, profile), False), "a test")


def faults_of(document: object) -> list[str]:
    with pytest.raises(ConfigError) as error:
        profile_from_json(document, "file")
    return [str(fault) for fault in error.value.faults]


# ---- files ----


def test_a_profile_is_the_same_after_json_and_after_csv(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps(profile_to_json(PROFILE)))
    (tmp_path / "p.csv").write_text(profile_to_csv(PROFILE))
    assert read_profile(tmp_path / "p.json") == PROFILE
    assert read_profile(tmp_path / "p.csv") == PROFILE


def test_a_table_by_layer_index_with_sums_loads_as_other_planners_write_it(tmp_path: Path) -> None:
    (tmp_path / "metis.csv").write_text(
        "chip,tp,micro_batch,kind,layer,forward_backward_s,parameter_bytes\n"
        "emu-m,1,1,embedding,,0.003,1000\n"
        "emu-m,1,1,,0,0.03,2000\n"
        "emu-m,1,1,,1,0.06,2000\n"
        "emu-m,1,1,head,,0.009,1000\n"
    )
    profile = read_profile(tmp_path / "metis.csv")
    dense = [row for row in profile.layers if row.layer is not None]
    assert [row.forward_s for row in dense] == pytest.approx([0.01, 0.02])
    assert [row.backward_s for row in dense] == pytest.approx([0.02, 0.04])
    again = profile_from_json(profile_to_json(profile))
    assert [row.forward_s for row in again.layers] == pytest.approx([row.forward_s for row in profile.layers])
    assert all(row.is_split for row in again.layers)


def test_all_faults_of_a_table_are_told_with_their_rows(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text(
        "chip,tp,micro_batch,kind,forward_s,backward_s\n"
        "emu-l,0,1,dense,0.1,0.2\n"
        "emu-ll,1,1,dense,0.1,0.2\n"
        "emu-l,1,1,denze,0.1,0.2\n"
        "emu-l,1,1,dense,-0.1,0.2\n"
        "emu-l,1,1,dense,0.1,\n"
        "emu-l,1,1,,0.1,0.2\n"
    )
    with pytest.raises(ConfigError) as error:
        read_profile(tmp_path / "bad.csv")
    told = [str(fault) for fault in error.value.faults]
    for line, words in (
        (2, "tp is 0"), (3, "unknown chip 'emu-ll'"), (4, "did you mean dense"), (5, "forward_s is -0.1"),
        (6, "backward_s is missing"), (7, "either kind or layer"),
    ):  # fmt: skip
        assert any(f"bad.csv:{line}:" in fault and words in fault for fault in told), (line, words, told)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layres": []}, "did you mean layers"),
        ({"schema": 99}, "schema 99 is not known"),
        ({"layers": []}, "it has no layers"),
        ({"links": [{"chip": "emu-l", "other": "emu-s", "latency_s": 0, "bytes_per_s": 0}]}, "bytes_per_s is 0"),
        ({"links": [{"chip": "emu-l", "other": "emu-s", "latency_us": 1, "bytes_per_s": 1}]}, "did you mean latency_s"),
        ({"valid_for": {"seq": "long"}}, "seq is 'long'"),
        ({"optimizer": 3}, "optimizer is not a list"),
    ],
)
def test_a_bad_document_is_refused_with_what_to_write(change: dict[str, object], words: str) -> None:
    assert any(words in fault for fault in faults_of(profile_to_json(PROFILE) | change))


def test_a_file_that_is_no_json_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{\n "layers": [}')
    with pytest.raises(ConfigError, match=r"p\.json:2"):
        read_profile(tmp_path / "p.json")


# ---- for what it holds ----


def test_a_profile_holds_for_any_number_of_layers_but_not_for_other_widths() -> None:
    assert misfits(PROFILE.valid, replace(WORK, shape=replace(SHAPE, layers=80), global_batch=64)) == []
    (reason,) = misfits(PROFILE.valid, replace(WORK, shape=replace(SHAPE, hidden=256)))
    assert "hidden=128" in reason
    assert "hidden=256" in reason
    assert len(misfits(PROFILE.valid, replace(WORK, seq=128, dtype="bf16"))) == 2
    assert misfits(Validity(), WORK) == []


# ---- interpolation ----


def test_measured_points_are_hit_and_between_them_lies_a_line() -> None:
    assert [interpolate((1, 4), (1.0, 7.0), size) for size in (1, 2, 4)] == [1.0, 3.0, 7.0]


@given(
    st.lists(st.tuples(st.integers(1, 64), st.floats(1e-4, 1.0)), min_size=2, max_size=6, unique_by=lambda p: p[0]),
    st.integers(1, 200),
)
def test_what_is_interpolated_is_positive_and_within_its_neighbours(
    points: list[tuple[int, float]], wanted: int
) -> None:
    samples, values = zip(*sorted(points), strict=True)
    found = interpolate(samples, values, wanted)
    assert found is not None
    assert found > 0
    if wanted > samples[-1]:
        assert found >= values[-1]
    elif wanted >= samples[0]:
        left = max(i for i, size in enumerate(samples) if size <= wanted)
        right = min(i for i, size in enumerate(samples) if size >= wanted)
        assert min(values[left], values[right]) * 0.999 <= found <= max(values[left], values[right]) * 1.001


def test_the_optimizer_is_a_line_through_its_points() -> None:
    start, slope = fit_line(PROFILE.optimizer)
    assert (start, slope) == pytest.approx((0.001, 1e-6))
    assert fit_line(PROFILE.optimizer[:1]) == pytest.approx((0.0, 2e-6))


# ---- costs ----


def test_measured_degrees_answer_as_measured() -> None:
    assert costs().forward_s(0, "dense", Degrees(), 2) == pytest.approx(0.02)
    assert costs().backward_s(0, "dense", Degrees(tp=2, sp=True, dp=2), 4) == pytest.approx(0.04)
    assert costs().activation_bytes(0, "dense", Degrees(tp=2, sp=True), 3) == pytest.approx(1500.0)
    assert costs().tell([Side(0, Degrees())], 4)[1] == ()


def test_degrees_that_were_not_measured_are_scaled_from_the_nearest() -> None:
    analytic = costs().analytic
    wanted, near = Degrees(tp=4, sp=True), Degrees(tp=2, sp=True)
    ratio = analytic.forward_s(0, "dense", wanted, 2) / analytic.forward_s(0, "dense", near, 2)
    assert costs().forward_s(0, "dense", wanted, 2) == pytest.approx(0.01 * ratio)
    assert "emu-l at tp 4 sp was not measured: scaled from tp 2 sp" in costs().tell([Side(0, wanted)], 4)[1]


def test_beyond_the_measured_range_there_is_a_warning() -> None:
    assert costs().forward_s(0, "dense", Degrees(), 8) == pytest.approx(0.08)
    told = costs().tell([Side(0, Degrees())], 8)[1]
    assert told == ("WARNING: emu-l was measured with micro-batches of 1 to 4; 8 is extrapolated",)


def test_a_chip_that_was_not_measured_is_analytic_and_said_so() -> None:
    analytic = costs().analytic
    assert costs().forward_s(1, "dense", Degrees(), 1) == analytic.forward_s(1, "dense", Degrees(), 1)
    assert costs().activation_bytes(1, "dense", Degrees(), 1) is None
    assert any("emu-s was not measured: analytic" in word for word in costs().tell([Side(1, Degrees())], 1)[1])


def test_a_kind_of_layer_that_was_not_measured_is_scaled_by_one_that_was() -> None:
    shape = replace(SHAPE, experts=Experts(4, 2, 352, layers=(2, 3)))
    mixed = costs(work=replace(WORK, shape=shape))
    bias = 0.01 / mixed.analytic.forward_s(0, "dense", Degrees(), 1)
    expected = mixed.analytic.forward_s(0, "experts", Degrees(), 1) * bias
    assert mixed.forward_s(0, "experts", Degrees(), 1) == pytest.approx(expected)


def test_an_optimizer_step_is_on_its_line_and_has_the_overhead_of_a_step() -> None:
    assert costs().optimizer_s(0, Degrees(), 2000.0, 0.0) == pytest.approx(0.003 + 0.01)


def test_links_and_rings_are_those_measured() -> None:
    total = 64 * 128 * 4
    ours, theirs = Side(0, Degrees()), Side(1, Degrees())
    assert costs().transfer_s(ours, theirs, 1) == pytest.approx(0.001 + total / 1e8)
    assert costs().transfer_s(ours, ours, 1) == pytest.approx(0.002 + total / 2e8)
    assert costs().machine.groups[0].link == Link(1e-4, 3e8)


def test_a_link_inside_a_host_says_nothing_about_chips_on_several_hosts() -> None:
    apart = replace(MACHINE, between={})
    assert with_measured_links(apart, PROFILE).between == {}
    far = replace(PROFILE, links=(replace(PROFILE.links[0], hosts=2),))
    assert with_measured_links(apart, far).link_between(0, 1) == Link(0.001, 1e8)


def test_layers_by_index_count_for_their_kind() -> None:
    rows = tuple(LayerRow("emu-l", 1, 1, forward_s, 0.02, layer=i) for i, forward_s in enumerate((0.01, 0.03)))
    assert costs(Profile(layers=rows)).forward_s(0, "dense", Degrees(), 1) == pytest.approx(0.02)
