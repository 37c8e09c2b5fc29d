"""One key of a YAML: its name, type and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Key:
    """An engine argument as its engine's command line and configuration classes have it."""

    name: str
    type: Literal["bool", "int", "float", "str", "int_list", "float_list", "str_list", "any"]
    default: Any = None
    choices: tuple[Any, ...] = ()
    target: str = ""
    """``Class.field`` (several: blank between), ``not Class.field``, ``loop`` (our rank program), ``plan`` (the
    layout), ``ignored`` (accepted with a warning) or ``unsupported``."""
    note: str = ""
    """For an ignored or unsupported key: why, and what to write instead."""
