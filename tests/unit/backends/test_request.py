"""From engine arguments to layout requests."""

from __future__ import annotations

from typing import Any

import pytest

from backends.megatron.engine import engine
from backends.megatron.pipeline import expand_layout
from flagvega.cluster.nodes import Cluster, Node
from flagvega.errors import ConfigError
from flagvega.layout.build import build_plan
from flagvega.layout.check import check_plan
from flagvega.layout.plan import Plan, Recompute
from flagvega.layout.request import LayoutRequest, MeshRequest

from .conftest import make

CPUS = Cluster((Node("a", ("cpu",) * 16),))
MIXED = Cluster((Node("a", ("emu-l",) * 4), Node("b", ("emu-s",) * 8)))


def request(**arguments: Any) -> LayoutRequest:
    spec = make(**arguments)
    assert list(engine.check(spec)) == []
    return engine.request(spec)


def plan(cluster: Cluster, **arguments: Any) -> Plan:
    found = build_plan(request(**arguments), cluster)
    assert check_plan(found) == []
    return found


def test_one_mesh_takes_megatron_lms_keys_and_fills_the_devices() -> None:
    found = request(
        tensor_model_parallel_size=2,
        pipeline_model_parallel_size=4,
        context_parallel_size=2,
        sequence_parallel=True,
        use_distributed_optimizer=True,
        untie_embeddings_and_output_weights=True,
    )
    assert found.meshes == (MeshRequest(tp=2, cp=2, pp=4, sp=True),)
    assert found.distributed_optimizer
    assert not found.tied_embeddings


def test_sequence_parallelism_is_off_where_tp_is_1() -> None:
    assert not request(sequence_parallel=True).meshes[0].sp


@pytest.mark.parametrize(("given", "loss"), [({}, "mean"), ({"calculate_per_token_loss": True}, "token")])
def test_a_file_that_does_not_ask_for_per_token_loss_gets_megatrons_mean(given: dict[str, bool], loss: str) -> None:
    assert request(**given).loss == loss


@pytest.mark.parametrize(("size", "multiple", "padded"), [(509, 128, 512), (512, 128, 512), (513, 64, 576), (7, 1, 7)])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_the_padded_vocabulary_does_not_depend_on_tp(size: int, multiple: int, padded: int, tp: int) -> None:
    found = request(vocab_size=size, make_vocab_size_divisible_by=multiple, tensor_model_parallel_size=tp)
    assert found.padded_vocab_size == padded


def test_flagscales_meshes_become_ours() -> None:
    found = plan(
        MIXED,
        enable_hetero=True,
        hetero_process_meshes=[2, 1, 1, 2, 1, 1, 1, 1, 4, 2],
        hetero_device_types=["emu-l", "EMU-S"],
        hetero_pipeline_layer_split=[0, 3, 1],
        hetero_current_device_type="emu-l",
        pipeline_model_parallel_size=3,
        sequence_parallel=True,
    )
    assert [(mesh.chip, mesh.tp, mesh.dp, mesh.sp) for mesh in found.meshes] == [
        ("emu-l", 2, 2, True),
        ("emu-s", 1, 4, False),
    ]
    assert [chunk.num_layers for chunk in found.chain] == [0, 3, 1]
    assert [stage.replicas[0].micro_batch_size for stage in found.stages] == [2, 1, 1]


def test_sequence_parallelism_can_be_chosen_for_each_mesh() -> None:
    found = request(
        enable_hetero=True,
        hetero_process_meshes=[2, 1, 1, 1, 1, 2, 1, 1, 1, 1],
        hetero_sequence_parallel=[True, False],
    )
    assert [mesh.sp for mesh in found.meshes] == [True, False]


def test_expert_tensor_parallelism_can_be_chosen_for_each_mesh() -> None:
    found = request(
        num_experts=4,
        sequence_parallel=True,
        enable_hetero=True,
        hetero_process_meshes=[2, 1, 2, 2, 1, 2, 1, 2, 1, 1],
        expert_tensor_parallel_size_per_process_mesh=[2, 1],
    )
    assert [mesh.etp for mesh in found.meshes] == [2, 1]


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("Et|tt|tttL", ["Et", "tt", "tttL"]),
        ("E|tttt|L", ["E", "tttt", "L"]),
        ("Et*3|(tt|)*2tL", ["Ettt", "tt", "tt", "tL"]),
        ("E, (t|)*3 L", ["Et", "t", "t", "L"]),
        ("E((t)*2|)*2L", ["Ett", "tt", "L"]),
    ],
)
def test_repeats_of_a_layout_are_written_out(text: str, stages: list[str]) -> None:
    assert expand_layout(text) == stages


@pytest.mark.parametrize(
    ("arguments", "layers"),
    [
        ({"pipeline_model_parallel_layout": "E|tttt|L"}, [0, 4, 0]),
        ({"decoder_first_pipeline_num_layers": 2}, [2, 1, 1]),
        ({"decoder_last_pipeline_num_layers": 0}, [2, 2, 0]),
        ({"decoder_first_pipeline_num_layers": 1, "decoder_last_pipeline_num_layers": 2}, [1, 1, 2]),
        ({"hetero_pipeline_layer_split": [1, 1, 2]}, [1, 1, 2]),
        ({}, [2, 1, 1]),
    ],
)
def test_layers_can_be_split_in_any_of_the_known_ways(arguments: dict[str, Any], layers: list[int]) -> None:
    cluster = Cluster((Node("a", ("cpu",) * 3),))
    found = plan(cluster, pipeline_model_parallel_size=3, **arguments)
    assert [chunk.num_layers for chunk in found.chain] == layers


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_layers_per_virtual_pipeline_stage": 1},
        {"num_virtual_stages_per_pipeline_rank": 2},
        {"pipeline_model_parallel_layout": "Et|t|t|tL"},
    ],
)
def test_virtual_stages_can_be_asked_for_in_any_of_the_known_ways(arguments: dict[str, Any]) -> None:
    found = plan(CPUS, pipeline_model_parallel_size=2, **arguments)
    assert found.schedule == "interleaved"
    assert [(chunk.stage, chunk.num_layers) for chunk in found.chain] == [(0, 1), (1, 1), (0, 1), (1, 1)]


def test_like_meshes_interleave_as_one() -> None:
    arguments = {"enable_hetero": True, "num_virtual_stages_per_pipeline_rank": 2}
    found = plan(CPUS, hetero_process_meshes=[2, 1, 1, 1, 1, 2, 1, 1, 1, 1], **arguments)
    assert len(found.meshes) == 1
    unlike = build_plan(request(hetero_process_meshes=[2, 1, 1, 1, 1, 1, 1, 1, 1, 1], **arguments), CPUS)
    assert "an interleaved schedule runs in one mesh" in str(check_plan(unlike)[0])


def test_recompute_is_the_same_everywhere_unless_it_is_given_per_stage() -> None:
    found = request(recompute_granularity="full", recompute_method="block", recompute_num_layers=1)
    assert found.recompute == ((Recompute("full", "block", 1),),)
    assert request(recompute_activations=True).recompute == ((Recompute("selective"),),)


def test_recompute_per_stage_and_micro_batch_is_flagscales() -> None:
    found = request(
        pipeline_model_parallel_size=3,
        recompute_granularity="full",
        recompute_method="uniform",
        recompute_num_layers=1,
        recompute_granularity_per_stage_micro_batch=[[1, 6, 0, 2, 0], "1, 6, 1, 2, 0", [1, 8, 1]],
        recompute_method_per_stage_micro_batch=[[2, 8, 0], [1, 8, 1]],
        recompute_num_layers_per_stage_micro_batch=[[1, 8, 2], [1, 6, 1, 2, 1], [1, 4, 2, 4, 1]],
    )
    assert found.recompute == (
        (Recompute(until=6), Recompute()),
        (Recompute("full", "uniform", 1, until=6), Recompute()),
        (Recompute("full", "block", 2, until=4), Recompute("full", "block", 1)),
    )


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1, 8, 1]], "describes 1 stages, but there are 2"),
        ([[2, 8]], "a row of recompute_granularity_per_stage_micro_batch is not"),
        ([[2, 8, "x"]], "a row of"),
        (7, "a row of"),
    ],
)
def test_rows_of_recompute_that_do_not_fit_are_named(rows: Any, expected: str) -> None:
    spec = make(
        pipeline_model_parallel_size=2,
        recompute_granularity="full",
        recompute_method="uniform",
        recompute_num_layers=1,
        recompute_granularity_per_stage_micro_batch=rows,
    )
    with pytest.raises(ConfigError, match=expected):
        engine.request(spec)


def test_the_bridge_block_reaches_the_boundaries() -> None:
    spec = make(
        enable_hetero=True,
        hetero_process_meshes=[1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        hetero_device_types=["emu-l", "emu-s"],
        blocks={"bridge": {"wire_dtype": "bf16", "chunk_bytes": 4096, "slow_boundaries": []}},
    )
    boundary = build_plan(engine.request(spec), MIXED).boundaries[0]
    assert (boundary.wire_dtype, boundary.chunk_bytes, boundary.slow) == ("bf16", 4096, False)


def test_communication_through_the_cpu_bridges_like_meshes_too() -> None:
    meshes = {"enable_hetero": True, "hetero_process_meshes": [1, 1, 1, 1, 2, 1, 1, 1, 1, 1]}
    found = plan(CPUS, hetero_use_cpu_communication=True, **meshes)
    assert [boundary.transport for boundary in found.boundaries] == ["native", "bridge"]
    assert [boundary.transport for boundary in plan(CPUS, **meshes).boundaries] == ["native", "native"]


def test_a_fault_of_the_layout_names_the_line_of_its_key() -> None:
    spec = make(tensor_model_parallel_size=32)
    with pytest.raises(ConfigError, match=r"t.yaml:12 train.model.tensor_model_parallel_size: tp 32"):
        build_plan(engine.request(spec), CPUS)
