"""From requests to plans."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from flagvega.cluster.nodes import Cluster, Node
from flagvega.errors import ConfigError
from flagvega.layout.build import build_plan, even_split
from flagvega.layout.check import check_plan
from flagvega.layout.plan import Plan, Recompute
from flagvega.layout.ranks import places
from flagvega.layout.request import LayoutRequest, MeshRequest

ONE_HOST = Cluster((Node("a", ("big",) * 8),))
TWO_DEVICES = Cluster((Node("a", ("big",) * 2),))
THREE_DEVICES = Cluster((Node("a", ("big",) * 3),))
TWO_KINDS = Cluster((Node("a", ("big",) * 4), Node("b", ("small",) * 4)))


def request(*meshes: MeshRequest, num_layers: int = 8, micro: int = 2, **options: object) -> LayoutRequest:
    return LayoutRequest(meshes, num_layers, micro, 512, **options)  # type: ignore[arg-type]


def fault(wanted: LayoutRequest, cluster: Cluster) -> str:
    with pytest.raises(ConfigError) as error:
        build_plan(wanted, cluster)
    return str(error.value)


def test_data_parallelism_fills_the_devices_at_hand() -> None:
    plan = build_plan(request(MeshRequest(tp=2, pp=2)), ONE_HOST)
    assert plan.meshes[0].dp == 2
    assert plan.world_size == 8


def test_every_stage_runs_the_same_samples() -> None:
    meshes = (MeshRequest(tp=2, dp=2, chip="big"), MeshRequest(dp=4, chip="small"))
    plan = build_plan(request(*meshes), TWO_KINDS)
    assert plan.batch.samples == 4
    assert [stage.replicas[0].micro_batch_size for stage in plan.stages] == [2, 1]


def test_unlike_chips_are_bridged_and_their_boundary_is_slow() -> None:
    meshes = (MeshRequest(dp=1, pp=2, chip="big"), MeshRequest(dp=1, pp=2, chip="small"))
    plan = build_plan(request(*meshes, wire_dtype="bf16", chunk_bytes=1024), TWO_KINDS)
    assert [boundary.transport for boundary in plan.boundaries] == ["native", "bridge", "native"]
    assert [boundary.slow for boundary in plan.boundaries] == [False, True, False]
    assert [boundary.wire_dtype for boundary in plan.boundaries] == [None, "bf16", None]
    assert [stage.in_flight for stage in plan.stages] == [5, 4, 2, 1]


def test_slow_boundaries_can_be_switched_off() -> None:
    meshes = (MeshRequest(dp=1, chip="big"), MeshRequest(dp=1, chip="small"))
    plan = build_plan(request(*meshes, slow_boundaries=()), TWO_KINDS)
    assert [stage.in_flight for stage in plan.stages] == [2, 1]


def test_a_stage_may_have_no_layers() -> None:
    plan = build_plan(request(MeshRequest(pp=3, dp=1), num_layers=4, layer_split=(0, 4, 0)), THREE_DEVICES)
    assert [chunk.layers for chunk in plan.chain] == [(0, 0), (0, 4), (4, 4)]
    assert plan.chain[0].embedding
    assert plan.chain[-1].head


def test_virtual_stages_visit_every_stage_in_turn() -> None:
    plan = build_plan(request(MeshRequest(pp=2, dp=1), virtual_stages=2), TWO_DEVICES)
    assert [(chunk.stage, chunk.layers) for chunk in plan.chain] == [(0, (0, 2)), (1, (2, 4)), (0, (4, 6)), (1, (6, 8))]
    assert plan.schedule == "interleaved"


def test_a_tp_group_stays_on_one_node_where_it_can() -> None:
    cluster = Cluster((Node("a", ("big",) * 3), Node("b", ("big",) * 3)))
    plan = build_plan(request(MeshRequest(tp=2, dp=2)), cluster)
    assert plan.meshes[0].devices == ((0, 0), (0, 1), (1, 0), (1, 1))


def test_a_tp_group_crosses_nodes_where_it_must() -> None:
    cluster = Cluster((Node("a", ("big",) * 3), Node("b", ("big",) * 1)))
    plan = build_plan(request(MeshRequest(tp=2, dp=2)), cluster)
    assert plan.meshes[0].devices == ((0, 0), (0, 1), (0, 2), (1, 0))


def test_tp_is_fastest_in_rank_order_and_the_stage_slowest() -> None:
    plan = build_plan(request(MeshRequest(tp=2, cp=2, pp=2)), ONE_HOST)
    assert [(place.stage.id, place.cp, place.tp) for place in places(plan)][:5] == [
        (0, 0, 0),
        (0, 0, 1),
        (0, 1, 0),
        (0, 1, 1),
        (1, 0, 0),
    ]


def test_too_few_devices_are_said_as_a_whole_product_with_the_nearest_that_fits() -> None:
    text = fault(request(MeshRequest(tp=2, dp=3, pp=2, chip="big")), ONE_HOST)
    assert "tp 2 x cp 1 x dp 3 x pp 2 = 12 devices, but 8 of big are at hand" in text
    assert "dp 2 would fit" in text


def test_degrees_that_do_not_divide_the_devices_are_a_fault() -> None:
    text = fault(request(MeshRequest(tp=3)), ONE_HOST)
    assert "tp 3 x cp 1 x pp 1 = 3 devices, which do not divide the 8 of big at hand" in text
    assert "tp 2 would fit" in text or "tp 4 would fit" in text


def test_experts_must_fit_into_a_stage() -> None:
    text = fault(request(MeshRequest(tp=2, dp=3, ep=4, etp=1)), ONE_HOST)
    assert "etp 1 x ep 4 = 4 does not divide tp 2 x cp 1 x dp 3 = 6" in text
    assert "ep 3 would fit" in text


def test_a_second_mesh_does_not_get_devices_that_the_first_has() -> None:
    text = fault(request(MeshRequest(dp=6, chip="big"), MeshRequest(dp=3, chip="big"), micro=1), ONE_HOST)
    assert "mesh 1: tp 1 x cp 1 x dp 3 x pp 1 = 3 devices, but 2 of big are at hand" in text


def test_idle_devices_may_not_lie_before_working_ones() -> None:
    cluster = Cluster((Node("a", ("big", "big", "small")),))
    text = fault(request(MeshRequest(dp=1, chip="big"), MeshRequest(dp=1, chip="small")), cluster)
    assert "device 1 of a would be idle" in text


def test_a_micro_batch_that_no_dp_divides_is_a_fault() -> None:
    text = fault(request(MeshRequest(dp=1, chip="big"), MeshRequest(dp=3, chip="small")), TWO_KINDS)
    assert "micro_batch_size 2 x dp 1 of mesh 0 = 2 samples, which dp 3 of mesh 1 does not divide" in text
    assert "micro_batch_size 3 would fit" in text


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ((4, 3), "4 + 3 = 7 layers, but the model has 8"),
        ((4, 2, 2), "has 3 entries, but there are 2 stages"),
        ((-1, 9), "-1 + 9 = 8 layers"),
    ],
)
def test_a_split_that_does_not_fit_says_one_that_does(split: tuple[int, ...], expected: str) -> None:
    text = fault(request(MeshRequest(pp=2, dp=1), layer_split=split), ONE_HOST)
    assert expected in text
    assert "for example [4, 4]" in text


def test_recompute_for_another_number_of_stages_is_a_fault() -> None:
    wanted = request(MeshRequest(pp=3, dp=1), recompute=((Recompute(),), (Recompute(),)))
    assert "recompute is given for 2 stages, but there are 3" in fault(wanted, ONE_HOST)


@given(st.integers(0, 200), st.integers(1, 20))
def test_an_even_split_is_even_and_leaves_nothing(layers: int, parts: int) -> None:
    split = even_split(layers, parts)
    assert sum(split) == layers
    assert max(split) - min(split) <= 1
    assert list(split) == sorted(split, reverse=True)


@given(
    tp=st.integers(1, 4),
    cp=st.integers(1, 2),
    dp=st.integers(1, 3),
    pp=st.integers(1, 3),
    other_dp=st.integers(1, 4),
    virtual=st.integers(1, 3),
    layers=st.integers(0, 12),
)
def test_every_plan_that_is_built_is_consistent(
    tp: int, cp: int, dp: int, pp: int, other_dp: int, virtual: int, layers: int
) -> None:
    assume(pp > 1 or virtual == 1)
    cluster = Cluster((Node("a", ("big",) * (tp * cp * dp * pp)), Node("b", ("small",) * 4)))
    meshes = [MeshRequest(tp=tp, cp=cp, dp=dp, pp=pp, chip="big", sp=tp > 1)]
    if virtual == 1:
        meshes.append(MeshRequest(dp=other_dp, chip="small"))
    plan: Plan = build_plan(request(*meshes, num_layers=layers, micro=12, virtual_stages=virtual), cluster)
    assert check_plan(plan) == []
