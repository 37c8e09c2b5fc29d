"""Reads a mapping into a dataclass, and tells what a dataclass holds: its fields are our YAML's keys."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from flagvega.config.nearest import nearest
from flagvega.config.report import Report
from flagvega.config.values import EXPECTED, WrongTypeError, coerce, describe, how_to_write

T = TypeVar("T")

_KINDS: Mapping[Any, str] = {bool: "bool", int: "int", float: "float", str: "str", Any: "any"}


@dataclass(frozen=True)
class Shape:
    """What a field holds."""

    kind: Literal["scalar", "choice", "list", "mapping", "block"]
    holds: str = "any"
    """Of a scalar, or of the values of a list or mapping: one of :data:`flagvega.config.values.EXPECTED`."""
    block: type | None = None
    """The dataclass of a block, or of the elements of a list."""
    choices: tuple[Any, ...] = ()
    optional: bool = False
    minimum: int | None = None
    maximum: int | None = None


@dataclass(frozen=True)
class Entry:
    """A field of a block: a key of our YAML."""

    name: str
    shape: Shape
    default: Any
    required: bool
    doc: str


def entries(block: type) -> tuple[Entry, ...]:
    """The keys of a block in order, without those that only we fill."""
    hints, docs = get_type_hints(block), _docstrings(block)
    return tuple(
        Entry(
            name=each.name,
            shape=_field_shape(each, hints),
            default=None if each.default is MISSING else each.default,
            required=each.default is MISSING and each.default_factory is MISSING,
            doc=docs.get(each.name, ""),
        )
        for each in _user_fields(block)
    )


def key_names(block: type) -> tuple[str, ...]:
    """The keys of a block."""
    return tuple(each.name for each in _user_fields(block))


def paths(block: type, prefix: str) -> dict[str, str]:
    """Key -> full path, for every key of a block and of the blocks inside it."""
    found = {}
    for name, hint in ((name, get_type_hints(block)[name]) for name in key_names(block)):
        found[name] = f"{prefix}.{name}"
        shape = _shape(hint)
        if shape.block and shape.kind == "block":
            found |= {key: path for key, path in paths(shape.block, f"{prefix}.{name}").items() if key not in found}
    return found


def read(block: type[T], value: Any, path: str, report: Report) -> T | None:
    """The mapping ``value`` as a ``block``; None, with the faults in ``report``, when it cannot be."""
    if not isinstance(value, Mapping):
        report.fault(path, f"expected a mapping, got {describe(value)}", f"keys: {', '.join(key_names(block))}")
        return None
    before, hints, given = len(report.faults), get_type_hints(block), dict[str, Any]()
    known = {each.name: each for each in _user_fields(block)}
    for name, item in value.items():
        if name not in known:
            report.unknown(f"{path}.{name}", key_names(block), f"under '{path}'")
        elif item is not None:
            given[name] = _read_value(_field_shape(known[name], hints), item, f"{path}.{name}", report)
    for each in known.values():
        missing = each.name not in given and each.default is MISSING and each.default_factory is MISSING
        if missing and not report.has_fault(f"{path}.{each.name}"):
            report.fault(f"{path}.{each.name}", f"'{path}.{each.name}' is missing", f"add it under '{path}'")
    return block(**given) if len(report.faults) == before else None


def _read_value(shape: Shape, value: Any, path: str, report: Report) -> Any:
    if shape.kind == "block" and shape.block:
        return read(shape.block, value, path, report)
    if shape.kind == "list":
        items = value if isinstance(value, list) else [value]
        return tuple(_read_item(shape, item, f"{path}[{i}]", report) for i, item in enumerate(items))
    if shape.kind == "mapping":
        if not isinstance(value, Mapping):
            report.fault(path, f"expected a mapping, got {describe(value)}")
            return None
        return {str(name): _read_item(shape, item, f"{path}.{name}", report) for name, item in value.items()}
    return _read_item(shape, value, path, report)


def _read_item(shape: Shape, value: Any, path: str, report: Report) -> Any:
    if shape.block:
        return read(shape.block, value, path, report)
    if shape.choices:
        if value not in shape.choices:
            near = nearest(value, shape.choices, 1) if isinstance(value, str) else ()
            hint = f"did you mean '{near[0]}'? " if near else ""
            report.fault(path, f"{describe(value)} is not possible here", f"{hint}one of: {_words(shape.choices)}")
        return value
    try:
        found = coerce(shape.holds, value)
    except WrongTypeError:
        what = f"expected {EXPECTED[shape.holds]}, got {describe(value)}"
        report.fault(path, what, how_to_write(shape.holds, value))
        return None
    if shape.minimum is not None and found < shape.minimum:
        report.fault(path, f"{found} is too small", f"at least {shape.minimum}")
    if shape.maximum is not None and found > shape.maximum:
        report.fault(path, f"{found} is too large", f"at most {shape.maximum}")
    return found


def _words(choices: tuple[Any, ...]) -> str:
    return ", ".join(str(choice) for choice in choices)


def _user_fields(block: type) -> tuple[Field[Any], ...]:
    return tuple(each for each in fields(block) if not each.metadata.get("ours"))


def _field_shape(each: Field[Any], hints: Mapping[str, Any]) -> Shape:
    limits = {name: each.metadata[name] for name in ("minimum", "maximum") if name in each.metadata}
    return replace(_shape(hints[each.name]), **limits)


def _shape(hint: Any) -> Shape:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        inner = _shape(next(arg for arg in args if arg is not NoneType))
        return Shape(inner.kind, inner.holds, inner.block, inner.choices, optional=True)
    if origin is Literal:
        return Shape("choice", "str", choices=args)
    if origin is tuple:
        inner = _shape(args[0])
        return Shape("list", inner.holds, inner.block, inner.choices, minimum=inner.minimum)
    if is_dataclass(hint) and isinstance(hint, type):
        return Shape("block", block=hint)
    if origin is not None and issubclass(origin, Mapping):
        return Shape("mapping", _KINDS[args[1]])
    return Shape("scalar", _KINDS[hint])


def _docstrings(block: type) -> dict[str, str]:
    """The text under each field, which Python itself throws away."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(block))).body[0]
    found, name = {}, None
    for node in tree.body if isinstance(tree, ast.ClassDef) else ():
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        elif name and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found[name] = " ".join(str(node.value.value).split())
    return found
