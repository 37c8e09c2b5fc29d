"""Writes the layouts of a space out: meshes from their degrees, layouts from meshes, splits of the layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import permutations, product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flagvega.layout.build import even_split
from flagvega.layout.plan import Method, Recompute
from flagvega.layout.request import MeshRequest
from flagvega.tune.space import Values
from flagvega.tune.training.facts import Facts
from flagvega.tune.training.rules import batch, boundary, engine, host, idle, recompute, stages, virtual
from flagvega.tune.training.shape import Shape
from flagvega.tune.training.space import DEGREES, MESHES, MICRO_BATCH, SPLIT, VIRTUAL, Space

Splits = NDArray[np.int16]
"""(splits, stages): layers of every stage."""
MESH_RULES: Sequence[tuple[str, Callable[[MeshRequest, Facts], str | None]]] = (
    ("stages", stages.check),
    ("host", host.check),
    ("engine", engine.check),
)
SHAPE_RULES: Sequence[tuple[str, Callable[[Shape, Facts], str | None]]] = (
    ("batch", batch.check),
    ("boundary", boundary.check),
    ("virtual", virtual.check),
    ("recompute", recompute.check),
)
MAX_LIGHTER = 3
"""By so many layers the stage with the model's head may be lighter than the others of its mesh."""
MAX_ORDERS = 4
"""Up to so many kinds of chips every order of them in the pipeline is tried where the YAML gives none."""


@dataclass
class Tally:
    """How many layouts there were, and what each rule took away: (rule, layouts left, an example's reason)."""

    total: int = 0
    steps: list[tuple[str, int, str]] = field(default_factory=list)

    def by_rule(self) -> list[tuple[str, int, str]]:
        """One entry a rule, summed over the combinations of settings."""
        found: dict[str, tuple[int, str]] = {}
        for rule, left, example in self.steps:
            before, first = found.get(rule, (0, ""))
            found[rule] = before + left, first or example
        return [(rule, left, example) for rule, (left, example) in found.items()]


def list_shapes(space: Space, facts: Facts, order: Sequence[str] | None, tally: Tally) -> list[Shape]:
    """All legal layouts but for their splits; ``order`` are the chips of the meshes where the YAML gives them."""
    rows = [_mesh_rows(space, facts, chips) for chips in _orders(space, facts, order)]
    others = list(product(_micro_batches(space, facts), _virtuals(space), _sharded(space), _recomputes(space, facts)))
    tally.total += sum(prod(len(row) for row in each) for each in rows) * len(others)
    for name, rule in MESH_RULES:
        example = ""
        for each in rows:
            for i, row in enumerate(each):
                reasons = [rule(mesh, facts) for mesh in row]
                example = example or next((reason for reason in reasons if reason), "")
                each[i] = [mesh for mesh, reason in zip(row, reasons, strict=True) if reason is None]
        tally.steps.append((name, sum(prod(len(row) for row in each) for each in rows) * len(others), example))
    return _combine(space, facts, rows, others, tally)


def _combine(space: Space, facts: Facts, rows: list[list[list[MeshRequest]]], others: list[Any],
             tally: Tally) -> list[Shape]:  # fmt: skip
    """Layouts from meshes: first those that use all devices, then what the rules of layouts leave."""
    full: dict[tuple[MeshRequest, ...], None] = {}
    example = ""
    wanted = space.layout.get("pipeline_model_parallel_size") if MESHES not in space.layout else None
    for each in rows:
        for meshes in _filling(each, dict(facts.counts)):
            if wanted is None or len(each) == 1 or sum(mesh.pp for mesh in meshes) in wanted:
                full[meshes] = None
    for each in rows:
        some = next(iter(product(*each)), None)
        example = example or (idle.check(Shape(some, 1), facts) or "" if some else "")
    tally.steps.append(("idle", len(full) * len(others), example))
    layers = facts.work.shape.layers
    shapes = []
    for meshes in full:
        num_stages = sum(mesh.pp for mesh in meshes)
        for size, chunk, sharded, recomputed in others:
            chunks = 1 if chunk is None or num_stages == 1 else max(1, -(-layers // (num_stages * chunk)))
            # Without replicas a distributed optimizer is the plain one.
            is_sharded = sharded and any((mesh.dp or 1) * mesh.cp > 1 for mesh in meshes)
            shapes.append(Shape(meshes, size, chunks, is_sharded, recomputed))
    shapes = list(dict.fromkeys(shapes))
    for name, rule in SHAPE_RULES:
        reasons = [rule(shape, facts) for shape in shapes]
        example = next((reason for reason in reasons if reason), "")
        shapes = [shape for shape, reason in zip(shapes, reasons, strict=True) if reason is None]
        tally.steps.append((name, len(shapes), example))
    return shapes


def _filling(row: list[list[MeshRequest]], counts: dict[str, int]) -> Iterator[tuple[MeshRequest, ...]]:
    """Meshes, one of each entry, that together have exactly the devices there are."""
    chips = Counter(str(options[0].chip) for options in row if options)
    if set(chips) != set(counts) or not all(row):
        return
    if all(number == 1 for number in chips.values()):
        kept = [[mesh for mesh in options if _size(mesh) == counts[str(mesh.chip)]] for options in row]
        yield from product(*kept)
        return
    for meshes in product(*row):
        used = Counter[str]()
        for mesh in meshes:
            used[str(mesh.chip)] += _size(mesh)
        if used == counts:
            yield meshes


def _size(mesh: MeshRequest) -> int:
    return mesh.tp * mesh.cp * (mesh.dp or 1) * mesh.pp


def _orders(space: Space, facts: Facts, order: Sequence[str] | None) -> list[tuple[str, ...]]:
    """Which chip each mesh has."""
    template = (space.layout.get(MESHES) or (None,))[0]
    chips = tuple(facts.counts)
    if order is not None and (template is None or len(template) == 5 * len(order)):
        return [tuple(order)]
    if template is not None and len(template) != 5 * len(chips):
        return [chips * (len(template) // 5)] if len(chips) == 1 else []
    return list(permutations(chips)) if len(chips) <= MAX_ORDERS else [chips]


def _mesh_rows(space: Space, facts: Facts, chips: tuple[str, ...]) -> list[list[MeshRequest]]:
    template = (space.layout.get(MESHES) or (None,))[0]
    found = []
    for i, chip in enumerate(chips):
        if MESHES in space.layout:
            entries = dict(zip(DEGREES.values(), _entries(template, i), strict=True))
        else:
            entries = {word: space.layout.get(name, (1,)) for name, word in DEGREES.items()}
            if "expert_tensor_parallel_size" not in space.layout:
                entries["etp"] = (None,)
            if len(chips) > 1 and "pipeline_model_parallel_size" in space.layout:
                entries["pp"] = None  # it counts the stages of all meshes
        found.append(list(_meshes(entries, chip, space, facts)))
    return found


def _entries(template: Any, mesh: int) -> list[Values]:
    """tp, cp, ep, etp, dp, pp of a mesh of FlagScale's template."""
    if template is None:
        return [None, (1,), (1,), (None,), None, None]
    tp, cp, ep, dp, pp = template[5 * mesh : 5 * mesh + 5]
    return [tp, cp, ep, (None,), dp, pp]


def _meshes(entries: dict[str, Values], chip: str, space: Space, facts: Facts) -> Iterator[MeshRequest]:
    count = facts.counts[chip]
    divisors = tuple(n for n in range(1, count + 1) if count % n == 0)
    experts = facts.work.shape.experts.num if facts.work.shape.experts else 1
    auto = {"ep": tuple(n for n in range(1, experts + 1) if experts % n == 0), "etp": (None, 1)}
    values = [entries[name] or auto.get(name, divisors) for name in ("tp", "cp", "ep", "etp", "dp", "pp")]
    flags = space.layout.get("sequence_parallel")
    for tp, cp, ep, etp, dp, pp in product(*values):
        for sp in dict.fromkeys(bool(flag) and tp > 1 for flag in (flags or (True,))):
            yield MeshRequest(tp, cp, ep, dp, pp, etp, sp, chip)


def _micro_batches(space: Space, facts: Facts) -> tuple[int, ...]:
    unit = facts.work.batch_unit
    given = space.layout.get(MICRO_BATCH)
    return given or tuple(n for n in range(1, unit + 1) if unit % n == 0)


def _virtuals(space: Space) -> tuple[int | None, ...]:
    """Layers of a chunk; None: one chunk a stage."""
    given = space.layout.get(VIRTUAL, (None,))
    return (None, 1, 2, 4) if given is None else given


def _sharded(space: Space) -> tuple[bool, ...]:
    given = space.layout.get("use_distributed_optimizer", (True,))
    return (True, False) if given is None else given


def _recomputes(space: Space, facts: Facts) -> list[tuple[Recompute, ...] | None]:
    """What ``use_recompute`` and its three companions name; where none is named, as little as memory asks for."""
    names = ("use_recompute", "recompute_granularity", "recompute_method", "recompute_num_layers")
    if not any(name in space.layout for name in names):
        return [None]
    found: list[tuple[Recompute, ...] | None] = []
    kinds = space.layout.get("recompute_granularity", ("full",)) or ("full", "selective")
    methods: tuple[Method, ...] = space.layout.get("recompute_method", ("block",)) or ("block", "uniform")
    depths = space.layout.get("recompute_num_layers", None)
    for used in space.layout.get("use_recompute", (True,)) or (True, False):
        if not used:
            found.append((Recompute(),))
            continue
        for kind in kinds:
            if kind == "selective":
                found.append((Recompute("selective"),))
                continue
            for method in methods:
                most = facts.work.shape.layers
                for depth in depths or ((1,) if method == "uniform" else range(1, most + 1)):
                    found.append((Recompute("full", method, depth),))
    return list(dict.fromkeys(found))


def list_splits(space: Space, shape: Shape, num_layers: int) -> Splits:
    """Layers of every stage: the space's own lists, or every cut between meshes."""
    given = space.layout.get(SPLIT, None)
    sizes = tuple(mesh.pp for mesh in shape.meshes)
    if given is not None:
        fitting = [split for split in given if len(split) == sum(sizes) and sum(split) == num_layers]
        return np.array(fitting, dtype=np.int16).reshape(len(fitting), sum(sizes))
    if shape.virtual_stages > 1:
        return np.array([even_split(num_layers, sizes[0])], dtype=np.int16)
    return _cuts(sizes, num_layers)


@cache
def _cuts(sizes: tuple[int, ...], num_layers: int) -> Splits:
    """Every number of layers for every mesh, even inside it; but the very last stage, which has the head, may have
    up to :data:`MAX_LIGHTER` fewer than the others of its mesh."""
    totals = np.array(list(_compositions(sizes, num_layers)), dtype=np.int16).reshape(-1, len(sizes))
    if not len(totals):
        return np.zeros((0, sum(sizes)), np.int16)
    *former, last = sizes
    columns = [_even(totals[:, i], size) for i, size in enumerate(former)]
    found = [np.concatenate([*columns, _even(totals[:, -1], last)], axis=1)]
    for fewer in range(1, MAX_LIGHTER + 1) if last > 1 else ():
        lightest = totals[:, -1] // last - fewer
        fits = lightest > 0
        rest = _even((totals[:, -1] - lightest)[fits], last - 1)
        parts = [*(column[fits] for column in columns), rest, lightest[fits, None]]
        found.append(np.concatenate(parts, axis=1))
    return np.unique(np.concatenate(found), axis=0).astype(np.int16)


def _even(totals: Splits, size: int) -> Splits:
    """(rows, stages): as even as can be, earlier stages take the rest."""
    return np.stack([(totals + size - 1 - j) // size for j in range(size)], axis=1)


def _compositions(sizes: tuple[int, ...], total: int) -> Iterator[tuple[int, ...]]:
    """Layers of every mesh, at least one a stage."""
    first, *rest = sizes
    if not rest:
        if total >= first:
            yield (total,)
        return
    for layers in range(first, total - sum(rest) + 1):
        for others in _compositions(tuple(rest), total - layers):
            yield (layers, *others)
