"""Reads the space of a service: engine arguments, FlagScale's names for some of them, replicas, variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Final

from flagvega.config.keys import Key
from flagvega.config.nearest import suggest
from flagvega.config.serving import OTHER_ENGINES
from flagvega.config.spec import Service, Spec
from flagvega.config.values import WrongTypeError, coerce
from flagvega.errors import ConfigError, Fault
from flagvega.tune.candidates import Settings
from flagvega.tune.space import UnreadableError, flatten, read_values

TP, PP, REPLICAS = "tensor_parallel_size", "pipeline_parallel_size", "num_replicas"
NAMES: Final[Mapping[str, str]] = {
    "tensor_model_parallel_size": TP,
    "pipeline_model_parallel_size": PP,
    "instance": REPLICAS,
    "resources.num_replicas": REPLICAS,
}
"""FlagScale's names, and longer ones."""
RANGES: Final[Mapping[str, tuple[int, ...]]] = {
    "max_num_seqs": (8, 16, 32, 64, 128, 256),
    "max_num_batched_tokens": (256, 512, 1024, 2048, 4096, 8192),
    "block_size": (16, 32, 64, 128),
}
"""What ``auto`` is."""
OPEN: Final = ("max_num_seqs", "max_num_batched_tokens")
"""What is ``auto`` where no space is given."""


@dataclass(frozen=True)
class Space:
    """The dimensions, each with its values."""

    dimensions: tuple[tuple[str, tuple[Any, ...]], ...]
    fills: bool = False
    """Whether replicas follow from the devices: as many as there is room for."""

    def combinations(self) -> list[Settings]:
        """All of them, in order."""
        each = ([(name, value) for value in values] for name, values in self.dimensions)
        return list(product(*each))


def read_space(spec: Spec, keys: Mapping[str, Key], num_devices: int) -> Space:
    """The space of a spec whose services can have so many devices; ``keys`` are the engine's arguments.

    :raises ConfigError: with all that is wrong.
    """
    given = flatten(spec.blocks.get("auto_tuner", {}).get("space", {})) or dict.fromkeys(OPEN, "auto")
    owners = _owners(spec)
    found: dict[str, tuple[Any, ...]] = {}
    faults: list[Fault] = []
    fills = False
    for full, value in given.items():
        where = spec.where.get(f"experiment.auto_tuner.space.{full}", f"experiment.auto_tuner.space.{full}")
        engine, _, rest = full.partition(".")
        if engine in OTHER_ENGINES and rest and engine not in owners:
            if engine != spec.services[0].engine:
                continue  # FlagScale's YAMLs hold the spaces of several engines
            full = rest
        owner, argument = _split(full, owners)
        name = f"{owner}.{argument}" if owner else argument
        try:
            if argument == REPLICAS and value == "auto":
                fills = True
            elif argument in keys and keys[argument].target == "unsupported":
                faults.append(Fault(f"'{argument}' is not taken", where, keys[argument].note))
            elif argument in keys or argument == REPLICAS or argument.startswith("env."):
                found[name] = _values(argument, read_values(value), keys, num_devices)
            else:
                fix = suggest(argument, [*keys, *NAMES, REPLICAS]) or "an engine argument, num_replicas, or env.NAME"
                faults.append(Fault(f"'{full}' is no dimension of a service", where, fix))
        except UnreadableError as error:
            faults.append(Fault(str(error), where))
    if faults:
        raise ConfigError(faults)
    return Space(tuple(found.items()), fills)


def _owners(spec: Spec) -> dict[str, str]:
    """Services by their names as a dimension has them, and as they are."""
    return {service.name.replace("-", "_"): service.name for service in spec.services}


def _split(name: str, owners: Mapping[str, str]) -> tuple[str, str]:
    """The service that a dimension is of, if it says so, and the argument."""
    owner, _, rest = name.partition(".")
    owner = owner.replace("-", "_")
    if owner in owners and rest:
        return owners[owner], NAMES.get(rest, rest)
    return "", NAMES.get(name, name)


def _values(name: str, values: tuple[Any, ...] | None, keys: Mapping[str, Key], num_devices: int) -> tuple[Any, ...]:
    """The values of a dimension, of its type."""
    if values is None:
        return _auto(name, keys, num_devices)
    if name.startswith("env."):
        return tuple(map(str, values))
    kind = "int" if name == REPLICAS else keys[name].type
    try:
        found = [coerce(kind, list(value) if isinstance(value, tuple) else value) for value in values]
    except WrongTypeError as error:
        raise UnreadableError(f"'{name}' cannot be one of {list(values)}") from error
    choices = keys[name].choices if name in keys else ()
    if choices and (wrong := [value for value in found if value not in choices]):
        raise UnreadableError(f"'{name}' cannot be {wrong[0]!r}: {', '.join(map(str, choices))}")
    if name in (TP, PP, REPLICAS, *RANGES) and (small := [value for value in found if value < 1]):
        raise UnreadableError(f"'{name}' is a whole number above 0, not {small[0]!r}")
    return tuple(tuple(value) if isinstance(value, list) else value for value in found)


def _auto(name: str, keys: Mapping[str, Key], num_devices: int) -> tuple[Any, ...]:
    if name in (TP, PP):
        return tuple(number for number in range(1, num_devices + 1) if num_devices % number == 0)
    if name in RANGES:
        return RANGES[name]
    if name in keys and keys[name].choices:
        return tuple(keys[name].choices)
    if name in keys and keys[name].type == "bool":
        return (False, True)
    raise UnreadableError(f"'auto' has no meaning for '{name}': write its values")


def with_settings(spec: Spec, settings: Settings, room: int | None = None) -> Spec:
    """The spec with a candidate's choices; ``room``: devices that replicas are to fill, where they are."""
    envs, services, owners = dict(spec.envs), list(spec.services), _owners(spec)
    for name, item in settings:
        value = list(item) if isinstance(item, tuple) else item
        owner, argument = _split(name, owners)
        if argument.startswith("env."):
            envs[argument.removeprefix("env.")] = str(value)
            continue
        services = [
            _changed(service, argument, value) if owner in ("", service.name) else service for service in services
        ]
    if room is not None:
        services = [replace(each, num_replicas=max(1, room // (len(services) * each.num_devices))) for each in services]
    return replace(spec, envs=envs, services=tuple(services))


def _changed(service: Service, argument: str, value: Any) -> Service:
    if argument == REPLICAS:
        return replace(service, num_replicas=value)
    return replace(service, arguments={**service.arguments, argument: value})
