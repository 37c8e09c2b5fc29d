"""What a profile asks for, and where."""

from __future__ import annotations

from typing import Any

from flagvega.cluster.nodes import Cluster, Node
from flagvega.layout.plan import Mesh
from flagvega.layout.ranks import places
from flagvega.layout.request import LayoutRequest, MeshRequest
from flagvega.model.shape import Experts, ModelShape
from flagvega.model.workload import Choices, Workload
from flagvega.plan.profile import Validity
from flagvega.plan.questions import Probe, ask, fingerprint, left, num_answered, profile_of

SHAPE = ModelShape(8, 128, 4, 4, 32, 352, 512)
LAYOUT = LayoutRequest((MeshRequest(),), 8, 1, 512, wire_dtype="bf16", chunk_bytes=4096)
CLUSTER = Cluster((Node("a", ("emu-s", "emu-l")), Node("b", ("emu-l",) * 4), Node("c", ("emu-m",))))


def asked(choices: Choices | None = None, shape: ModelShape = SHAPE, illegal: Any = lambda mesh: None) -> Probe:
    work = Workload(shape, 64, "fp32", 8, 8, 4, 8)
    return ask(work, choices or Choices(), LAYOUT, CLUSTER, (1, 4), illegal)


def layers(probe: Probe) -> list[tuple[str, int, bool, int]]:
    questions = [question for round_ in probe.rounds for question in round_ if question["what"] == "layers"]
    return [(its["chip"], its["tp"], its["sp"], its["micro_batch"]) for its in questions]


def test_each_chip_is_measured_where_most_of_it_is() -> None:
    probe = asked()
    assert [node.devices for node in probe.cluster.nodes] == [("emu-s",), ("emu-l",) * 4, ("emu-m",)]
    assert {mesh.chip: mesh.tp for mesh in probe.plan.meshes} == {"emu-s": 1, "emu-l": 4, "emu-m": 1}
    assert sorted({(chip, tp) for chip, tp, _, _ in layers(probe)}) == [
        ("emu-l", 1), ("emu-l", 2), ("emu-l", 4), ("emu-m", 1), ("emu-s", 1),
    ]  # fmt: skip
    assert {size for *_, size in layers(probe)} == {1, 4}


def test_pins_and_what_the_engine_refuses_are_not_measured() -> None:
    assert {tp for _, tp, _, _ in layers(asked(Choices(tp=(2,))))} == {2}
    assert {tp for _, tp, _, _ in layers(asked(Choices(max_tp=2)))} == {1, 2}

    def no_sequence_parallelism(mesh: Mesh) -> str | None:
        return "no" if mesh.sp or mesh.tp == 4 else None

    assert {(tp, sp) for _, tp, sp, _ in layers(asked(illegal=no_sequence_parallelism))} == {(1, False), (2, False)}


def test_each_kind_of_layer_is_measured_twice() -> None:
    shape = ModelShape(8, 128, 4, 4, 32, 352, 512, experts=Experts(4, 2, 352, layers=(6, 7)))
    first = asked(shape=shape).rounds[0][0]
    assert first["kinds"] == ["dense", "dense", "experts", "experts"]


def test_every_two_kinds_of_chips_exchange_messages_as_the_pipeline_does() -> None:
    probe = asked()
    links = [question for round_ in probe.rounds for question in round_ if question["what"] == "link"]
    found = {(its["chip"], its["other"]): its for its in links}
    assert set(found) == {("emu-s", "emu-l"), ("emu-s", "emu-m"), ("emu-l", "emu-l"), ("emu-l", "emu-m")}
    bridged = found["emu-s", "emu-l"]
    assert (bridged["transport"], bridged["wire_dtype"], bridged["chunk_bytes"]) == ("bridge", "bf16", 4096)
    assert bridged["hosts"] == 2
    assert found["emu-l", "emu-l"]["transport"] == "native"
    chips = [places(probe.plan)[rank].mesh.chip for rank in bridged["ranks"]]
    assert chips == ["emu-s", "emu-l"]


def test_one_round_never_asks_a_device_twice() -> None:
    for round_ in asked().rounds:
        chips = [question.get("chip") for question in round_]
        assert len(set(chips)) == len(chips)


def test_only_what_has_no_answer_is_left() -> None:
    probe = asked()
    answers = [{**probe.rounds[0][0], "kind": "dense"}, {**probe.rounds[0][1], "skipped": "out of memory"}]
    assert num_answered(probe, answers) == 2
    assert left(probe, answers)[0] == probe.rounds[0][2:]
    assert profile_of(answers[1:], Validity()).layers == ()


def test_other_settings_have_other_answers() -> None:
    assert fingerprint(Validity(seq=1), {"a": 1}) == fingerprint(Validity(seq=1, date="today"), {"a": 1})
    assert fingerprint(Validity(seq=1), {"a": 1}) != fingerprint(Validity(seq=1), {"a": 2})
