"""Reads the space: FlagScale's names for the layout; any engine argument, ``env.NAME`` or ``bridge.key`` beside it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import Any

from flagvega.config.nearest import suggest
from flagvega.config.spec import Spec
from flagvega.config.values import WrongTypeError, coerce
from flagvega.engine import Engine
from flagvega.errors import ConfigError, Fault
from flagvega.tune.candidates import Settings
from flagvega.tune.space import AUTO, UnreadableError, Values, flatten, read_values

PER_MESH = ("tp", "cp", "ep", "dp", "pp")
DEGREES: Mapping[str, str] = {
    "tensor_model_parallel_size": "tp",
    "context_parallel_size": "cp",
    "expert_model_parallel_size": "ep",
    "expert_tensor_parallel_size": "etp",
    "data_parallel_size": "dp",
    "pipeline_model_parallel_size": "pp",
}
FLAGS = ("use_distributed_optimizer", "sequence_parallel", "use_recompute")
MESHES, SPLIT, MICRO_BATCH = "hetero_process_meshes", "hetero_pipeline_layer_split", "micro_batch_size"
VIRTUAL = "num_layers_per_virtual_pipeline_stage"
RECOMPUTE = ("recompute_granularity", "recompute_method", "recompute_num_layers")
LAYOUT = (*DEGREES, *FLAGS, MESHES, SPLIT, MICRO_BATCH, VIRTUAL, *RECOMPUTE)
"""Dimensions of the layout: FlagScale's names."""
OPEN = ("tensor_model_parallel_size", "data_parallel_size", "pipeline_model_parallel_size", MICRO_BATCH)
"""What is `auto` where neither the space nor the task says anything, as in FlagScale."""
BRIDGE = ("wire_dtype", "chunk_bytes", "slow_boundaries")


@dataclass(frozen=True)
class Space:
    """The dimensions, each with its values."""

    layout: Mapping[str, Values]
    """Of the names in :data:`LAYOUT`; those left out are neither in the space nor in the task."""
    settings: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    tuned: Collection[str] = field(default=())
    """Names that the space has; the others come from the task."""

    @property
    def num_settings(self) -> int:
        """Combinations of what is not layout."""
        return prod(len(values) for _, values in self.settings)

    def combinations(self) -> list[Settings]:
        """Of what is not layout, in order."""
        names = [name for name, _ in self.settings]
        return [tuple(zip(names, values, strict=True)) for values in product(*(values for _, values in self.settings))]


def read_space(spec: Spec, engine: Engine) -> Space:
    """The space of a spec; ConfigError with all that is wrong with it."""
    given = flatten(spec.blocks.get("auto_tuner", {}).get("space", {}))
    faults: list[Fault] = []
    keys = engine.keys()
    layout: dict[str, Values] = {}
    settings: list[tuple[str, tuple[Any, ...]]] = []
    for name, value in given.items():
        where = spec.where.get(f"experiment.auto_tuner.space.{name}", f"experiment.auto_tuner.space.{name}")
        try:
            if name in LAYOUT:
                layout[name] = _read_layout(name, value)
            elif _is_setting(name, keys):
                settings.append((name, _typed(name, read_values(value), keys)))
            else:
                all_kinds = f"a key of the layout ({', '.join(LAYOUT)}), an engine argument, env.NAME, or bridge.KEY"
                fix = suggest(name, [*LAYOUT, *keys]) or all_kinds
                faults.append(Fault(f"'{name}' is no dimension", where, fix))
        except UnreadableError as error:
            faults.append(Fault(str(error), where))
    if faults:
        raise ConfigError(faults)
    named = set(layout)
    for name in LAYOUT:
        if name not in layout and spec.arguments.get(name) is not None:
            value = spec.arguments[name]
            if name == MESHES:
                layout[name] = (tuple((number,) for number in value),)
            else:
                layout[name] = (tuple(value),) if isinstance(value, list) else (value,)
    if MESHES not in layout:
        layout |= {name: None for name in OPEN if name not in layout}
    return Space(layout, tuple(settings), named | {name for name, _ in settings})


def _read_layout(name: str, value: Any) -> Values:
    if name == MESHES:
        return _read_meshes(value)
    if name == SPLIT and isinstance(value, list) and all(isinstance(item, int) for item in value):
        return (tuple(value),)
    values = read_values(value)
    if values is None:
        return None
    if name in FLAGS:
        if wrong := [item for item in values if not isinstance(item, bool)]:
            raise UnreadableError(f"'{name}' is true or false, not {wrong[0]!r}")
    elif name in (*DEGREES, MICRO_BATCH, VIRTUAL, "recompute_num_layers"):
        if wrong := [item for item in values if not isinstance(item, int) or item < 1]:
            raise UnreadableError(f"'{name}' is a whole number above 0, not {wrong[0]!r}")
    elif name in RECOMPUTE:
        known = ("full", "selective") if name == "recompute_granularity" else ("uniform", "block")
        if wrong := [item for item in values if item not in known]:
            raise UnreadableError(f"'{name}' is {' or '.join(known)}, not {wrong[0]!r}")
    return values


def _read_meshes(value: Any) -> Values:
    """FlagScale's template: five entries a mesh, each a number, a list or ``auto``; all ``auto``: None."""
    if value == AUTO:
        return None
    if not isinstance(value, list) or not value or len(value) % len(PER_MESH):
        raise UnreadableError(f"'{MESHES}' is auto, or five entries a mesh: {', '.join(PER_MESH)}")
    entries = tuple(read_values(entry) for entry in value)
    if wrong := [item for entry in entries for item in entry or () if not isinstance(item, int) or item < 1]:
        raise UnreadableError(f"'{MESHES}' has whole numbers above 0, not {wrong[0]!r}")
    return (entries,)


def _is_setting(name: str, keys: Mapping[str, Any]) -> bool:
    head, _, tail = name.partition(".")
    return name in keys or (head == "env" and bool(tail)) or (head == "bridge" and tail in BRIDGE)


def _typed(name: str, values: Values, keys: Mapping[str, Any]) -> tuple[Any, ...]:
    if values is None:
        kind = getattr(keys.get(name), "type", None)
        choices = getattr(keys.get(name), "choices", ())
        if kind != "bool" and not choices:
            raise UnreadableError(f"'auto' has no meaning for '{name}': write its values")
        return tuple(choices) or (False, True)
    if name not in keys:
        return values
    try:
        found = [coerce(keys[name].type, list(item) if isinstance(item, tuple) else item) for item in values]
    except WrongTypeError as error:
        raise UnreadableError(f"'{name}' cannot be one of {list(values)}") from error
    return tuple(tuple(item) if isinstance(item, list) else item for item in found)
