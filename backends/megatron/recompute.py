"""Activation recompute per stage, from Megatron-LM's keys or FlagScale's per stage and micro-batch."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import yaml

from flagvega.config.spec import Spec
from flagvega.errors import ConfigError, Fault
from flagvega.layout.plan import Method, Recompute

_PER_STAGE = "recompute_{}_per_stage_micro_batch"
_METHODS: tuple[Method, ...] = ("uniform", "block")

Spans = list[tuple[int, int]]
"""(until, value): value of micro-batches up to ``until``, exclusive."""


def read_recompute(spec: Spec, settings: Mapping[str, Any], num_stages: int) -> tuple[tuple[Recompute, ...], ...]:
    """Recompute of every stage, or of all in one entry, or nothing; ConfigError when it contradicts itself."""
    granularity = settings["recompute_granularity"]
    if granularity is None and settings["recompute_activations"]:
        granularity = "selective"
    method, num_layers = settings["recompute_method"], settings["recompute_num_layers"]
    per_stage = {name: settings[_PER_STAGE.format(name)] for name in ("granularity", "method", "num_layers")}
    if any(rows is not None for rows in per_stage.values()):
        return _read_per_stage(spec, settings, per_stage, num_stages)
    if granularity is None:
        return ()
    where = spec.where.get("recompute_granularity", "")
    if granularity == "full" and (method is None or num_layers is None):
        fix = "add recompute_method: uniform and recompute_num_layers: 1"
        raise ConfigError(Fault("full recompute needs recompute_method and recompute_num_layers", where, fix))
    if granularity == "selective" and (method or num_layers):
        fix = "remove recompute_method and recompute_num_layers, or write recompute_granularity: full"
        raise ConfigError(Fault("selective recompute takes no method and no number of layers", where, fix))
    return ((Recompute(granularity, method, num_layers),),)


def _read_per_stage(
    spec: Spec, settings: Mapping[str, Any], per_stage: Mapping[str, Any], num_stages: int
) -> tuple[tuple[Recompute, ...], ...]:
    if settings["recompute_granularity"] != "full":
        where = next(spec.where[name] for n in per_stage if (name := _PER_STAGE.format(n)) in spec.where)
        raise ConfigError(Fault("recompute per stage is full recompute", where, "add recompute_granularity: full"))
    tables = {
        name: _read_rows(spec, _PER_STAGE.format(name), rows, num_stages)
        for name, rows in per_stage.items()
        if rows is not None
    }
    return tuple(_stage(settings, {name: table[i] for name, table in tables.items()}) for i in range(num_stages))


def _read_rows(spec: Spec, name: str, rows: Any, num_stages: int) -> list[Spans]:
    """Rows ``[stages, micro-batches, value, micro-batches, value, ...]`` as spans for every stage."""
    where = spec.where.get(name, "")
    stages: list[Spans] = []
    for row in rows if isinstance(rows, list) else [rows]:
        numbers = yaml.safe_load(f"[{row}]") if isinstance(row, str) else row
        if not isinstance(numbers, list) or len(numbers) < 3 or len(numbers) % 2 == 0 or not _all_counts(numbers):
            what = f"a row of {name} is not [stages, micro-batches, value, micro-batches, value, ...]: {row}"
            raise ConfigError(Fault(what, where, "for example [1, 30, 1, 2, 0]"))
        ends = accumulate(numbers[1::2])
        stages += [list(zip(ends, numbers[2::2], strict=True))] * numbers[0]
    if len(stages) != num_stages:
        raise ConfigError(Fault(f"{name} describes {len(stages)} stages, but there are {num_stages}", where))
    return stages


def _all_counts(numbers: list[Any]) -> bool:
    return all(isinstance(number, int) and number >= 0 for number in numbers)


def _stage(settings: Mapping[str, Any], spans: Mapping[str, Spans]) -> tuple[Recompute, ...]:
    """One stage's recompute, cut wherever one of its tables changes; the last part has no end."""
    ends = sorted({end for table in spans.values() for end, _ in table})
    found: list[Recompute] = []
    for end in ends:
        values = {name: next((value for until, value in table if end <= until), 0) for name, table in spans.items()}
        num_layers = values.get("num_layers", settings["recompute_num_layers"])
        method = settings["recompute_method"]
        if "method" in values:
            method = _METHODS[values["method"] % 2]
        is_on = bool(values.get("granularity", 1)) and bool(num_layers)
        until = None if end == ends[-1] else end
        found.append(Recompute("full", method, num_layers, until) if is_on else Recompute(until=until))
    return tuple(found)
