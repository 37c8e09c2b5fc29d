from __future__ import annotations

import pytest

from flagvega.config.blocks import AutoTuner
from flagvega.engine import engines
from flagvega.errors import ConfigError
from flagvega.tune.training.question import ask
from flagvega.tune.training.space import read_space

SPACE = "experiment.auto_tuner.space"
MEGATRON = engines.get("megatron")


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("{tensor_model_paralel_size: [1]}", "is no dimension\n    did you mean 'tensor_model_parallel_size'"),
        ("{micro_batch_size: []}", "an empty list"),
        ("{micro_batch_size: [two]}", "a whole number above 0"),
        ("{micro_batch_size: {from: 1}}", "'micro_batch_size.from' is no dimension"),
        ("{micro_batch_size: {from: 4, to: 2}}", "nothing from 4 to 2"),
        ("{micro_batch_size: {from: 1, to: 8, factor: 1}}", "factor is at least 2"),
        ("{use_recompute: [1]}", "true or false"),
        ("{recompute_granularity: [some]}", "full or selective"),
        ("{hetero_process_meshes: [1, 2]}", "five entries a mesh"),
        ("{lr: auto}", "'auto' has no meaning"),
        ("{overlap_grad_reduce: [maybe]}", "cannot be one of"),
    ],
)
def test_what_cannot_be_read_is_told(tuned, word, says):
    with pytest.raises(ConfigError) as caught:
        read_space(tuned(f"~{SPACE}", f"{SPACE}={word}"), MEGATRON)

    assert says in str(caught.value)


def test_arguments_environment_and_bridge_are_dimensions_beside_the_layout(tuned):
    space = read_space(tuned(
        f"{SPACE}={{overlap_grad_reduce: auto, env: {{NCCL_ALGO: [Ring, Tree]}}, bridge.chunk_bytes: [0, 65536]}}"
    ), MEGATRON)  # fmt: skip

    assert space.num_settings == 8
    assert dict(space.combinations()[0]) == {
        "overlap_grad_reduce": False, "env.NCCL_ALGO": "Ring", "bridge.chunk_bytes": 0,
    }  # fmt: skip


def test_flagscale_s_own_block_loads_unchanged(tuned):
    spec = tuned(
        f"~{SPACE}", f"{SPACE}={{data_parallel_size: auto, use_distributed_optimizer: [true, false], "
        "tensor_model_parallel_size: [1, 2], sequence_parallel: [true], pipeline_model_parallel_size: auto, "
        "num_layers_per_virtual_pipeline_stage: [1], use_recompute: [true], recompute_method: auto, "
        "recompute_granularity: auto, recompute_num_layers: auto, micro_batch_size: auto, context_parallel_size: auto, "
        "expert_model_parallel_size: [1]}",
        "experiment.auto_tuner.control={max_time_per_task: 300, train_iters: 5, max_time: 600, interval: 10}",
        "experiment.auto_tuner.memory_model={model_name: default, gpu_memory: 60000, gpu_utilization: [0.2, 0.8]}",
        "experiment.auto_tuner.performance={name: 'elapsed time', order: ascend}",
        "experiment.auto_tuner.algo={name: grid, priority: memory}",
        "cluster={nodes: [{chip: emu-l, devices: 4}]}", "~train.system.hetero",
        "~train.system.pipeline_model_parallel_size",
    )  # fmt: skip

    question = ask(spec, MEGATRON)

    assert sum(len(part.shapes) for part in question.parts) > 20
    shapes = question.parts[0].shapes
    assert {mesh.tp * mesh.cp * mesh.dp * mesh.pp for shape in shapes for mesh in shape.meshes} == {4}
    assert any(shape.virtual_stages > 1 for shape in shapes)


def test_flagscale_s_template_keeps_what_it_fixes(tuned):
    template = "[1,1,1,1,1, auto,1,1,[1,2],auto, 2,1,1,1,1]"
    question = ask(tuned(f"~{SPACE}", f"{SPACE}={{hetero_process_meshes: {template}}}"), MEGATRON)

    meshes = {shape.meshes for shape in question.parts[0].shapes}
    assert {row[2].tp for row in meshes} == {2}
    assert {(row[1].tp, row[1].dp, row[1].pp) for row in meshes} == {(1, 1, 2), (1, 2, 1), (2, 1, 1)}


def test_layouts_stay_the_yaml_s_own_where_only_other_dimensions_are_named(tuned):
    question = ask(tuned(f"~{SPACE}", f"{SPACE}={{overlap_grad_reduce: auto}}"), MEGATRON)

    assert [part.shapes for part in question.parts] == [(), ()]


def test_settings_that_the_engine_refuses_are_left_out_with_the_reason(tuned):
    question = ask(tuned(f"~{SPACE}", f"{SPACE}={{micro_batch_size: [1], seq_length: [128, 4096]}}"), MEGATRON)

    assert len(question.parts) == 1
    assert "seq_length" in question.refused[0][1]


def test_every_step_of_the_count_is_no_more_than_the_one_before(tuned):
    tally = ask(tuned(), MEGATRON).tally

    counts = [tally.total, *(left for _, left, _ in tally.steps)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] > 0


def test_a_block_left_out_is_all_defaults():
    assert AutoTuner().algo.name == "guided"
