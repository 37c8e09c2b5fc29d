"""Values as written in YAML or on a command line, turned into what a key holds."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

EXPECTED: Final[Mapping[str, str]] = {
    "bool": "true or false",
    "int": "an integer",
    "float": "a number",
    "str": "text",
    "int_list": "a list of integers",
    "float_list": "a list of numbers",
    "str_list": "a list of texts",
    "any": "a value",
}
"""What each kind of key holds, in words."""

_INTEGER = re.compile(r"[-+]?\d+")


class WrongTypeError(ValueError):
    """The value cannot be read as the kind asked for."""


def coerce(kind: str, value: Any) -> Any:
    """``value`` as ``kind``; :class:`WrongTypeError` when it is something else.

    Numbers may be written as text ("1e-5", "8": FlagScale's files do, and references to the
    environment always are), an integer serves as a number, and one element as a list of one.
    """
    if kind.endswith("_list"):
        return [_SCALARS[kind.removesuffix("_list")](item) for item in (value if isinstance(value, list) else [value])]
    return value if kind == "any" else _SCALARS[kind](value)


def describe(value: Any) -> str:
    """A value as the user knows it: ``the text 'two'``, ``true``, ``a list``."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text '{value}'"
    if isinstance(value, list):
        return f"the list {value}"
    return "a mapping" if isinstance(value, Mapping) else "null" if value is None else str(value)


def how_to_write(kind: str, value: Any) -> str:
    """A hint for a value that cannot be read as ``kind``, where there is one."""
    if kind.startswith("str") and isinstance(value, bool):
        return "YAML reads yes, no, on and off as truth values too: put the text in quotes"
    if kind in ("int", "float") and isinstance(value, str) and re.fullmatch(r"[\d,._]+", value):
        return "write numbers without separators, with a decimal point: 1000000, 0.001"
    return ""


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise WrongTypeError


def _int(value: Any) -> int:
    if isinstance(value, bool):
        raise WrongTypeError
    if isinstance(value, int) or (isinstance(value, str) and _INTEGER.fullmatch(value)):
        return int(value)
    number = _float(value)
    if not number.is_integer():
        raise WrongTypeError
    return int(number)


def _float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise WrongTypeError
    try:
        number = float(value)
    except ValueError as error:
        raise WrongTypeError from error
    if math.isnan(number):
        raise WrongTypeError
    return number


def _str(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise WrongTypeError
    return str(value)


_SCALARS: Final[Mapping[str, Callable[[Any], Any]]] = {"bool": _bool, "int": _int, "float": _float, "str": _str}
