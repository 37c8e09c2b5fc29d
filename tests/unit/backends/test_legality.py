"""What the engine can run, and what it would train silently wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backends.megatron.engine import engine
from flagvega.cluster.nodes import Cluster, Node
from flagvega.config.spec import Spec
from flagvega.layout.build import build_plan
from flagvega.layout.plan import Boundary, Mesh, Plan

from .conftest import make

CLUSTER = Cluster((Node("a", ("cpu",) * 8),))


def judge(**arguments: Any) -> str:
    """Faults of the plan that the arguments ask for."""
    spec = make(**arguments)
    return "\n".join(map(str, engine.check_plan(spec, build_plan(engine.request(spec), CLUSTER))))


def mesh(**degrees: Any) -> Mesh:
    """A mesh of one stage."""
    found = Mesh(0, "cpu", **{"tp": 1, "cp": 1, "ep": 1, "dp": 1, "etp": 1, "sp": False, **degrees}, devices=())
    return replace(found, devices=tuple((0, i) for i in range(found.stage_size)))


@pytest.mark.parametrize(
    ("arguments", "degrees", "expected"),
    [
        ({"num_attention_heads": 2, "num_layers": 4}, {"tp": 4}, "num_attention_heads 2 is no multiple of tp 4"),
        (
            {"group_query_attention": True, "num_query_groups": 2},
            {"tp": 4},
            "num_query_groups 2 is no multiple of tp 4",
        ),
        ({"ffn_hidden_size": 130}, {"tp": 4}, "ffn_hidden_size 130 is no multiple of tp 4"),
        ({"make_vocab_size_divisible_by": 1}, {"tp": 2}, "the vocabulary, padded to 509, is no multiple of tp 2"),
        ({"seq_length": 30}, {"cp": 4}, "seq_length 30 is no multiple of 2 x cp 4"),
        ({"seq_length": 30}, {"tp": 4, "sp": True}, "seq_length 30 is no multiple of cp 1 x tp 4"),
        ({}, {"cp": 2}, "attention_dropout 0.1 with cp 2"),
        ({"num_experts": 4}, {"ep": 3, "dp": 3}, "num_experts 4 is no multiple of ep 3"),
        ({"num_experts": 4, "moe_ffn_hidden_size": 9}, {"tp": 2, "etp": 2, "sp": True}, "moe_ffn_hidden_size 9"),
        ({"num_experts": 4}, {"tp": 2, "etp": 2}, "experts with tp 2 need sequence parallelism"),
        ({"num_experts": 4}, {"tp": 2, "sp": True}, "does not reduce the experts' gradients, silently"),
        ({"num_experts": 4, "moe_grouped_gemm": True}, {}, "moe_grouped_gemm needs CUDA kernels, which cpu lacks"),
        ({}, {"ep": 2, "dp": 2}, "ep 2 without experts"),
    ],
)
def test_a_mesh_that_cannot_run_the_model_says_why(
    arguments: dict[str, Any], degrees: dict[str, Any], expected: str
) -> None:
    reasons = [reason for reason in [engine.legal_mesh(make(**arguments), mesh(**degrees))] if reason]
    assert reasons
    assert expected in reasons[0]


@pytest.mark.parametrize(
    ("arguments", "degrees"),
    [
        ({}, {"tp": 4, "dp": 2}),
        ({"attention_dropout": 0.0}, {"cp": 2, "tp": 2, "sp": True}),
        ({"num_experts": 4}, {"ep": 4, "dp": 4}),
        ({"num_experts": 4}, {"tp": 2, "etp": 2, "sp": True}),
        ({"num_experts": 4}, {"tp": 2, "ep": 2, "etp": 1, "sp": True}),
    ],
)
def test_a_mesh_that_can_run_the_model_is_legal(arguments: dict[str, Any], degrees: dict[str, Any]) -> None:
    assert engine.legal_mesh(make(**arguments), mesh(**degrees)) is None


def test_faults_of_a_plan_have_a_line_and_the_nearest_legal_setting() -> None:
    text = judge(tensor_model_parallel_size=8)
    assert "t.yaml:12 train.model.tensor_model_parallel_size: num_attention_heads 4 is no multiple of tp 8" in text
    assert "tp 4 would fit" in text


def test_a_global_batch_is_whole_micro_batches() -> None:
    text = judge(global_batch_size=24)
    assert "global_batch_size 24 is no multiple of micro_batch_size 2 x dp 8 = 16" in text
    assert "32 would fit" in text


def test_interleaved_stages_take_whole_rounds_of_micro_batches() -> None:
    arguments = {"pipeline_model_parallel_size": 2, "num_virtual_stages_per_pipeline_rank": 2}
    assert "x pp 2 (interleaved)" in judge(**arguments, global_batch_size=24)
    assert judge(**arguments, global_batch_size=32) == ""


def test_a_batch_ramp_up_is_whole_micro_batches_too() -> None:
    spec = make(without=("train_iters",), train_samples=640, global_batch_size=64, rampup_batch_size=[16, 24, 100])
    faults = engine.check_plan(spec, build_plan(engine.request(spec), CLUSTER))
    assert ["rampup_batch_size 24 is no multiple" in fault.what for fault in faults] == [True]


def test_unlike_chips_cannot_share_their_own_collectives() -> None:
    sender, receiver = mesh(), replace(mesh(), id=1, chip="emu-l")
    reason = engine.legal_boundary(make(), sender, receiver, Boundary("native"))
    assert reason
    assert "write transport bridge" in reason
    assert engine.legal_boundary(make(), sender, receiver, Boundary("bridge")) is None


def test_a_boundary_shares_the_sequence_over_tp() -> None:
    reason = engine.legal_boundary(make(seq_length=30), mesh(tp=4), mesh(), Boundary("native"))
    assert reason
    assert "seq_length 30 cannot be shared over cp 1 x tp 4" in reason


DISAGREEMENTS = {
    "num_layers": 5,
    "micro_batch_size": 1,
    "calculate_per_token_loss": True,
    "use_distributed_optimizer": True,
    "untie_embeddings_and_output_weights": True,
    "tensor_model_parallel_size": 2,
    "pipeline_model_parallel_size": 2,
    "context_parallel_size": 2,
}


def plan_file() -> tuple[Spec, Plan]:
    """A spec and a plan for it, as read from a file."""
    spec = make()
    return spec, build_plan(engine.request(spec), Cluster((Node("a", ("cpu",)),)))


@pytest.mark.parametrize("name", DISAGREEMENTS)
def test_keys_beside_a_plan_must_agree_with_it(name: str) -> None:
    _, plan = plan_file()
    faults = engine.check_plan(make(**{name: DISAGREEMENTS[name]}), plan)
    assert [fault.what for fault in faults if f"'{name}' is {DISAGREEMENTS[name]}, but the plan has" in fault.what]


def test_a_plan_for_another_vocabulary_is_refused() -> None:
    _, plan = plan_file()
    faults = engine.check_plan(make(vocab_size=1000), plan)
    assert "the plan's vocabulary is 512, but the padded vocabulary is 1024" in str(faults[0])


def test_a_plan_that_agrees_has_no_faults() -> None:
    spec, plan = plan_file()
    assert list(engine.check_plan(spec, plan)) == []
