from __future__ import annotations

import pytest
from jsonschema import Draft202012Validator

from backends.megatron.arguments import keys
from flagvega.config.command import parse
from flagvega.config.load import read_experiment
from flagvega.config.schema import build_schema


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = build_schema(keys())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def test_every_example_fits_the_schema(validator, repository):
    paths = sorted((repository / "examples").glob("*/conf/*.yaml"))
    faults = {
        path.name: [f"{error.json_path}: {error.message}" for error in validator.iter_errors(_composed(path))]
        for path in paths
    }

    assert paths
    assert not any(faults.values()), faults


@pytest.mark.parametrize(
    ("changed", "at"),
    [
        ({"experiment": {}}, "$.experiment"),
        ({"experiment": {"exp_name": "a", "exp_dirr": "b"}}, "$.experiment"),
        ({"experiment": {"exp_name": "a", "runner": {"nnodes": 0}}}, "$.experiment.runner"),
        ({"experiment": {"exp_name": "a", "task": {"type": "compress"}}}, "$.experiment.task"),
        ({"train": {"model": {"num_layers": "four"}}}, "$.train.model.num_layers"),
        ({"train": {"model": {"a": {"num_layerz": 4}}}}, "$.train.model.a.num_layerz"),
        ({"train": {"modle": {}}}, "$.train"),
        ({"bridge": {"wire_dtype": "fp8"}}, "$.bridge.wire_dtype"),
        ({"nonsense": 1}, "$"),
    ],
)
def test_what_the_loader_refuses_does_not_fit_the_schema(changed, at, validator):
    errors = list(validator.iter_errors({"experiment": {"exp_name": "a"}} | changed))

    assert any(error.json_path.startswith(at) for error in errors)


@pytest.mark.parametrize(
    "fine",
    [
        {"train": {"model": {"num_layers": "${oc.env:N}", "optimizer": {"lr": "1e-5"}, "untie-embeddings": True}}},
        {"plan": "plan.json", "cluster": {"nodes": [{"chip": "cpu"}]}},
        {"experiment": {"exp_name": "a", "runner": {"rdzv_id": "x", "hostfile": None}, "auto_tuner": {"space": {}}}},
    ],
)
def test_what_the_loader_takes_fits_the_schema(fine, validator):
    assert list(validator.iter_errors({"experiment": {"exp_name": "a"}} | fine)) == []


def _composed(path) -> dict:
    return dict(read_experiment(parse(["-cp", str(path.parent), "-cn", path.stem], {}, {})).composed)
