"""Plans as JSON."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagvega.cluster.nodes import Cluster, Node
from flagvega.errors import ConfigError
from flagvega.layout.build import build_plan
from flagvega.layout.codec import plan_from_json, plan_hash, plan_to_json
from flagvega.layout.plan import Plan, Recompute
from flagvega.layout.request import LayoutRequest, MeshRequest

CLUSTER = Cluster((Node("a", ("big",) * 4), Node("b", ("small",) * 8)))


def mixed_plan() -> Plan:
    """Two unlike meshes, three stages, recompute in the first."""
    meshes = (MeshRequest(tp=2, dp=2, chip="big", sp=True), MeshRequest(dp=4, pp=2, chip="small"))
    recompute = ((Recompute("full", "uniform", 1, until=3), Recompute()), (Recompute(),), (Recompute("selective"),))
    return build_plan(LayoutRequest(meshes, 5, 2, 512, recompute=recompute, wire_dtype="bf16"), CLUSTER)


def document() -> dict[str, Any]:
    """A plan's JSON, to be spoilt."""
    return json.loads(json.dumps(plan_to_json(mixed_plan())))


def test_a_plan_survives_being_written_and_read() -> None:
    assert plan_from_json(document()) == mixed_plan()


@given(tp=st.sampled_from([1, 2]), dp=st.integers(1, 4), layers=st.integers(1, 9), token=st.booleans())
def test_any_plan_survives_being_written_and_read(tp: int, dp: int, layers: int, token: bool) -> None:
    meshes = (MeshRequest(tp=tp, dp=1, pp=2, chip="big"), MeshRequest(dp=dp, chip="small"))
    request = LayoutRequest(meshes, layers, 12, 128, loss="token" if token else "mean", tied_embeddings=token)
    plan = build_plan(request, CLUSTER)
    assert plan_from_json(json.loads(json.dumps(plan_to_json(plan)))) == plan


def test_the_hash_covers_every_decision_and_no_prediction() -> None:
    plan = mixed_plan()
    assert plan_hash(replace(plan, predictions={"iter_time_s": 1.0})) == plan_hash(plan)
    changed = [
        replace(plan, tied_embeddings=True),
        replace(plan, batch=replace(plan.batch, padded_vocab_size=640)),
        replace(plan, boundaries=(replace(plan.boundaries[0], chunk_bytes=1), *plan.boundaries[1:])),
    ]
    assert len({plan_hash(plan), *map(plan_hash, changed)}) == 4


def test_a_plan_by_hand_may_leave_out_what_has_a_default() -> None:
    obj = document()
    del obj["decisions"]["schedule"], obj["decisions"]["stages"][1]["recompute"]
    assert plan_from_json(obj) == mixed_plan()


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("decisions", "meshes", 0, "tp"), "2", "decisions.meshes[0].tp: expected int, found '2'"),
        (("decisions", "meshes", 0, "tp"), True, "expected int, found True"),
        (("decisions", "meshes", 0, "devices", 1), [0], "decisions.meshes[0].devices[1]: expected a list of 2"),
        (("decisions", "meshes", 0, "tpp"), 2, "did you mean 'tp'?"),
        (("decisions", "batch", "loss"), "sum", "expected token or mean, found 'sum'"),
        (("decisions", "stages"), {}, "decisions.stages: expected a list"),
        (("decisions", "chain", 0, "mtp"), True, "multi-token prediction is known but not run yet"),
        (("decisions", "instances"), [], "plans for serving are known but not run yet"),
        (("kind",), "serve", "kind 'serve' is not run yet"),
        (("schema",), 2, "schema 2 is not one we read"),
        (("decision",), {}, "did you mean 'decisions'?"),
    ],
)
def test_what_does_not_fit_is_named_with_its_path(path: tuple[Any, ...], value: Any, expected: str) -> None:
    obj = document()
    at: Any = obj
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    with pytest.raises(ConfigError) as error:
        plan_from_json(obj, "my.json")
    assert expected in str(error.value)
    assert "my.json" in str(error.value)


def test_a_stage_held_by_two_meshes_is_known_but_not_run() -> None:
    obj = document()
    stage = obj["decisions"]["stages"][0]
    stage["replicas"] = [stage["replicas"][0], copy.deepcopy(stage["replicas"][0])]
    with pytest.raises(ConfigError, match="held by 2 meshes is known but not run yet"):
        plan_from_json(obj)


def test_all_faults_come_in_one_message() -> None:
    obj = document()
    obj["decisions"]["meshes"][0]["tp"] = None
    del obj["decisions"]["batch"]["samples"]
    obj["decisions"]["extra"] = 1
    with pytest.raises(ConfigError) as error:
        plan_from_json(obj)
    assert len(error.value.faults) == 3


@pytest.mark.parametrize("obj", [None, [], 3, {}, {"schema": 1, "kind": "train", "decisions": []}])
def test_what_is_no_plan_at_all_is_a_fault_and_no_traceback(obj: object) -> None:
    with pytest.raises(ConfigError):
        plan_from_json(obj)
