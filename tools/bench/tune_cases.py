"""The clusters and spaces on which the tuner is measured, and the grids that are kept of them."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from flagvega.config.command import parse
from flagvega.config.load import load_spec
from flagvega.config.spec import Spec
from flagvega.engine import engines
from flagvega.layout.build import even_split
from flagvega.tune.candidates import Point as AnyPoint
from flagvega.tune.pool import Pool
from flagvega.tune.training.families import pool_of
from flagvega.tune.training.question import Question, ask
from flagvega.tune.training.shape import Point, read_point

GRIDS = Path(__file__).with_name("tune_grids")
_CLUSTER = "cluster.nodes=[{nodes}]"


@dataclass(frozen=True)
class Case:
    """A cluster, a model and a space."""

    name: str
    chips: tuple[tuple[str, int], ...]
    words: tuple[str, ...]

    @property
    def command(self) -> list[str]:
        """The words of its command line."""
        nodes = ", ".join(f"{{chip: {chip}, devices: {count}}}" for chip, count in self.chips)
        where = ["--config-path", "examples/llama/conf", "--config-name", "tune"]
        return [*where, _CLUSTER.format(nodes=nodes), *self.words]

    def spec(self) -> Spec:
        """The experiment."""
        return load_spec(parse(self.command, {}, {}), lambda name: engines.get(name).keys())

    @property
    def title(self) -> str:
        """The cluster."""
        return " + ".join(f"{count} {chip.removesuffix('-slow')}" for chip, count in self.chips)


def _order(*chips: str) -> str:
    return f"train.system.hetero.hetero_device_types=[{','.join(chips)}]"


_SMALL = ("train.model.global_batch_size=4", "experiment.auto_tuner.space.micro_batch_size=[1,2]")
KEPT = (
    Case("large-small", (("emu-l-slow", 2), ("emu-s-slow", 2)), (
        _order("emu-s-slow", "emu-l-slow"), "train.model.num_layers=5", *_SMALL,
    )),
    Case("three-kinds", (("emu-s-slow", 1), ("emu-m-slow", 2), ("emu-l-slow", 2)), (
        _order("emu-s-slow", "emu-m-slow", "emu-l-slow"), "train.model.num_layers=5", *_SMALL,
    )),
    Case("medium-large", (("emu-m-slow", 4), ("emu-l-slow", 1)), (
        _order("emu-m-slow", "emu-l-slow"), "train.model.num_layers=6", *_SMALL,
    )),
)  # fmt: skip
LIVE = Case("small-medium", (("emu-s-slow", 1), ("emu-m-slow", 2)), (
    _order("emu-s-slow", "emu-m-slow"), "train.model.num_layers=5", *_SMALL,
))  # fmt: skip


LARGE = Case("three-hosts", (("h100-sxm", 8), ("a800-sxm-80g", 8), ("v100-sxm2-32g", 8)), (
    _order("h100-sxm", "a800-sxm-80g", "v100-sxm2-32g"), "train.model.num_layers=32",
    "train.model.global_batch_size=64", "train.model.hidden_size=1024", "train.model.num_attention_heads=16",
    "train.model.num_query_groups=8", "train.model.ffn_hidden_size=2048",
))  # fmt: skip
"""Three meshes of eight devices, 32 layers, all open: FlagScale lists 170,028 candidates and tries them all."""


@dataclass(frozen=True)
class Measured:
    """A grid of which every point was measured."""

    case: Case
    question: Question
    points: dict[str, dict[str, Any]]
    """By the candidates' keys."""

    @property
    def best_s(self) -> float:
        """Of all points."""
        return min(self.times)

    @property
    def times(self) -> list[float]:
        """Of all points that ran."""
        return [float(row["time_s"]) for row in self.points.values() if row["status"] in ("ok", "worse")]

    def pool(self) -> Pool:
        """Of the measured points."""
        pool = pool_of(self.question)
        for index in range(pool.num_legal):
            if pool.point(index)[0].key not in self.points:
                pool.drop(index)
        return pool


def read_grid(case: Case) -> Measured:
    """A kept grid with the question that it answers; the predictions are the planner's of today."""
    rows = json.loads((GRIDS / f"{case.name}.json").read_text())["points"]
    if late := sum(bool(row.get("notes")) for row in rows):
        raise SystemExit(f"{case.name}: the timings of {late} points do not count: collect them again")
    question = ask(case.spec(), engines.get("megatron"))
    return Measured(case, question, {read_point(row["point"]).key: row for row in rows})


def is_balanced(point: AnyPoint) -> bool:
    """Whether layers are cut evenly inside every mesh, as FlagScale's grid has them."""
    assert isinstance(point, Point)
    begin = 0
    for mesh in point.shape.meshes:
        layers = point.split[begin : begin + mesh.pp]
        if layers != even_split(sum(layers), mesh.pp):
            return False
        begin += mesh.pp
    return True
