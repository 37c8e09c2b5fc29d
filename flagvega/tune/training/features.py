"""What the time of a layout may depend on beside its prediction."""

from __future__ import annotations

from functools import cache
from math import log2
from typing import Any

from flagvega.layout.request import MeshRequest
from flagvega.tune.candidates import Settings
from flagvega.tune.learn import Features, Model
from flagvega.tune.training.forecast import Correction
from flagvega.tune.training.shape import Shape, recompute_words


def stage_features(mesh: MeshRequest, samples: float, head: float) -> Features:
    """Of one stage; ``head`` is the share of its time that is the model's head."""
    chip = str(mesh.chip)
    return {
        ("chip", chip): 1.0,
        ("tp", chip): log2(mesh.tp),
        ("samples", chip): log2(max(samples, 1e-9)),
        ("head", chip): head,
    }


def step_features(settings: Settings, shape: Shape) -> Features:
    """Of the step as a whole."""
    found: dict[tuple[Any, ...], float] = {("step",): 1.0}
    found |= {("setting", name, str(value)): 1.0 for name, value in settings}
    found["stages",] = log2(len(shape.stage_meshes))
    found["samples",] = log2(shape.samples)
    found["recompute", recompute_words(shape.recompute)] = 1.0
    found["sharded", shape.distributed_optimizer] = 1.0
    if shape.virtual_stages > 1:
        found["virtual",] = log2(shape.virtual_stages)
    return found


def correction(model: Model, boldness: float = 0.0) -> Correction:
    """Of stages, as the model knows it now, less so many deviations; each is worked out once."""

    @cache
    def factor(mesh: MeshRequest, samples: float, head: float) -> float:
        return model.part_factor(stage_features(mesh, samples, head), boldness)

    return factor
