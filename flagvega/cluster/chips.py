"""Names of chips in a configuration, judged apart from all else that may be wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from flagvega.errors import ConfigError, Fault
from flagvega.platform import find_chip

BLOCKS = ("cluster", "plan", "serve", "train")
"""Top-level blocks that name chips."""
LISTS = (list, tuple)
"""As written, and as read."""


def chip_name(name: str, where: str, faults: list[Fault]) -> str:
    """The chip of a name or an alias; a fault, and the name as it is, where there is none."""
    try:
        return find_chip(name).name
    except ConfigError as error:
        faults += [replace(fault, where=where) for fault in error.faults]
        return name


def misspelt_chips(values: Mapping[str, Any], place: Callable[[str], str]) -> list[Fault]:
    """Faults of all names of chips in a configuration; ``place`` tells where a key path was written."""
    faults: list[Fault] = []
    for block in BLOCKS:
        for path, name in _named(values.get(block), block):
            chip_name(name, place(path), faults)
    return list(dict.fromkeys(faults))


def _named(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """(key path, name of a chip)."""
    if path == "plan.order" or path.endswith((".chip", ".between", ".hetero_device_types")):
        yield from ((path, name) for name in (value if isinstance(value, LISTS) else [value]) if isinstance(name, str))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _named(item, f"{path}.{key}")
    elif isinstance(value, LISTS):
        for i, item in enumerate(value):
            yield from _named(item, f"{path}[{i}]")
