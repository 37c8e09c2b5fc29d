"""Reads the values of dimensions: lists, ranges, ``auto`` or one value, nested or dotted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

AUTO = "auto"

Values = tuple[Any, ...] | None
"""What a dimension may be; None: whatever makes sense for the model and the cluster."""


def flatten(space: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{bridge: {chunk_bytes: ..}}`` and ``{bridge.chunk_bytes: ..}`` alike, hyphens as ``_``."""
    found: dict[str, Any] = {}
    for name, value in space.items():
        full = prefix + (name if prefix == "env." else name.replace("-", "_"))
        if isinstance(value, Mapping) and not {"from", "to"} <= value.keys():
            found |= flatten(value, f"{full}.")
        elif value is not None:
            found[full] = value
    return found


class UnreadableError(ValueError):
    """Values that cannot be a dimension's."""


def read_values(value: Any) -> Values:
    """A list, a range, ``auto`` or one value."""
    if value == AUTO:
        return None
    if isinstance(value, list):
        if not value:
            raise UnreadableError("an empty list leaves nothing to choose")
        return tuple(dict.fromkeys(tuple(item) if isinstance(item, list) else item for item in value))
    if isinstance(value, Mapping):
        return _range(value)
    return (value,)


def _range(value: Mapping[str, Any]) -> tuple[int, ...]:
    if not {"from", "to"} <= value.keys() <= {"from", "to", "step", "factor"} or len(value) > 3:
        raise UnreadableError("a range is {from: 1, to: 8}, with step: or factor: where it is not 1")
    if not all(isinstance(number, int) and number > 0 for number in value.values()):
        raise UnreadableError("a range has whole numbers above 0")
    if value.get("factor") == 1:
        raise UnreadableError("factor is at least 2")
    found, number = [], value["from"]
    while number <= value["to"]:
        found.append(number)
        number = number * value["factor"] if "factor" in value else number + value.get("step", 1)
    if not found:
        raise UnreadableError(f"there is nothing from {value['from']} to {value['to']}")
    return tuple(found)
