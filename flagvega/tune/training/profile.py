"""What trials taught, as measured costs that the planner can go by: ``plan.profile``."""

from __future__ import annotations

import time
from collections.abc import Iterable

from flagvega.plan.profile import LayerRow, Profile, validity_of
from flagvega.tune.learn import Model
from flagvega.tune.training.features import correction
from flagvega.tune.training.forecast import Forecast
from flagvega.tune.training.shape import Point, degrees_of


def learned_profile(model: Model, forecast: Forecast, points: Iterable[Point]) -> Profile:
    """The layers of the chips at the degrees and micro-batches that trials had: the prediction, corrected.

    A trial times whole stages; what of them is the head and what is layers, the model tells apart.
    """
    corrected = correction(model)
    problem, rows = forecast.problem, dict[tuple[object, ...], LayerRow]()
    for point in points:
        for mesh in point.shape.meshes:
            side, its = forecast.side(mesh), degrees_of(mesh)
            samples = point.shape.samples // its.dp
            kinds = ("embedding", *dict.fromkeys(problem.stage_costs(point.shape.samples).layer_kinds), "head")
            for kind in kinds:
                factor = corrected(mesh, samples, 1.0 if kind == "head" else 0.0)
                row = LayerRow(
                    str(mesh.chip), its.tp, samples,
                    factor * problem.costs.forward_s(side.group, kind, its, samples),
                    factor * problem.costs.backward_s(side.group, kind, its, samples),
                    kind=kind, cp=its.cp, ep=its.ep, sp=its.sp,
                )  # fmt: skip
                rows[row.chip, row.tp, row.cp, row.ep, row.sp, row.micro_batch, kind] = row
    return Profile(tuple(rows.values()), valid=validity_of(problem.work, date=time.strftime("%F")))
