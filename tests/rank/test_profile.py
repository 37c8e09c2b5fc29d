"""Measuring with the real engine on emulated chips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from flagvega.actions.profile import decide_probe, pose
from flagvega.plan.questions import left, num_answered, profile_of
from flagvega.records import read_json_lines
from tests.rank.client import Server, call_of

FILE = "measured.jsonl"
CONFIG = {
    "cluster": {"nodes": [{"chip": "emu-l", "devices": 2}, {"chip": "emu-s", "devices": 1}]},
    "train": {
        "model": {
            "num_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "seq_length": 32,
            "max_position_embeddings": 32, "normalization": "RMSNorm", "swiglu": True, "disable_bias_linear": True,
            "untie_embeddings_and_output_weights": True, "global_batch_size": 4, "train_iters": 2, "lr": 1e-3,
            "num_experts": 4, "moe_router_topk": 2, "moe_layer_freq": [0, 0, 1, 1],
        },
        "data": {"mock_data": True, "tokenizer_type": "NullTokenizer", "vocab_size": 63},
    },
}  # fmt: skip


def test_every_part_of_the_model_is_measured_on_every_chip_and_degree(server: Server, tmp_path: Path) -> None:
    call = call_of(tmp_path, CONFIG, "micro_batches=1,2")
    probe, valid = pose(call, call.spec)
    decision = decide_probe(call, call.spec, probe, probe.rounds, FILE)
    outcome = server.start(decision, ["--profile"])
    answers = read_json_lines(outcome.directory.root / FILE)
    assert num_answered(probe, answers) == probe.num_questions
    assert left(probe, answers) == ()
    profile = profile_of(answers, valid)
    places = {(row.chip, row.tp, row.micro_batch) for row in profile.layers}
    assert places == {("emu-l", tp, size) for tp in (1, 2) for size in (1, 2)} | {("emu-s", 1, 1), ("emu-s", 1, 2)}
    assert {row.kind for row in profile.layers} == {"embedding", "dense", "experts", "head"}
    assert all(row.forward_s > 0 and row.backward_s > 0 for row in profile.layers)
    assert {(row.chip, row.other) for row in profile.links} == {("emu-l", "emu-l"), ("emu-l", "emu-s")}
    assert [(row.chip, row.ranks) for row in profile.collectives] == [("emu-l", 2)]
    assert {row.chip for row in profile.overheads} == {"emu-l", "emu-s"}
    saved = {
        (row.tp, row.micro_batch): row.activation_bytes
        for row in profile.layers
        if row.chip == "emu-l" and row.kind == "dense" and row.activation_bytes is not None
    }
    assert 1.5 < saved[1, 2] / saved[1, 1] <= 2.0
    assert saved[2, 1] < saved[1, 1]
    sizes = [row.parameters for row in profile.optimizer if row.chip == "emu-s"]
    assert len(set(sizes)) == 2


def test_what_was_measured_before_a_stop_is_not_asked_again(server: Server, tmp_path: Path) -> None:
    one = replace_cluster(CONFIG, [{"chip": "emu-l", "devices": 1}])
    call = call_of(tmp_path, one, "micro_batches=1")
    probe, _ = pose(call, call.spec)
    decision = decide_probe(call, replace(call.spec, exp_dir=tmp_path / "part"), probe, probe.rounds[:1], FILE)
    server.start(decision, ["--profile"])
    answers = read_json_lines(tmp_path / "part" / FILE)
    assert left(probe, answers) == probe.rounds[1:]
    stopped = decide_probe(call, replace(call.spec, exp_dir=tmp_path / "rest"), probe, probe.rounds[1:], FILE)
    server.start(stopped, ["--profile"], code=143, stop=143)
    assert read_json_lines(tmp_path / "rest" / FILE) == []


def replace_cluster(config: dict[str, object], nodes: list[dict[str, object]]) -> dict[str, object]:
    """The experiment on other devices."""
    return {**config, "cluster": {"nodes": nodes}}
