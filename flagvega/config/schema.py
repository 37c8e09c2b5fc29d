"""The JSON schema of our YAML, for editors and for other programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from flagvega.config.arguments import SECTIONS
from flagvega.config.blocks import BLOCKS, LATER, SHORTHANDS, Experiment
from flagvega.config.fields import Entry, Shape, entries
from flagvega.config.flagscale import rows
from flagvega.config.inference import InferenceBlock
from flagvega.config.keys import Key
from flagvega.config.serving import ServeEntry

_REFERENCE: Final = {"type": "string", "pattern": r"\$\{"}
_SCALARS: Final[Mapping[str, Mapping[str, Any]]] = {
    "bool": {"anyOf": [{"type": "boolean"}, {"type": "string", "pattern": r"^([Tt]rue|[Ff]alse|.*\$\{.*)$"}]},
    "int": {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": r"^[-+]?\d+$|\$\{"}]},
    "float": {"anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^[-+]?[\d.]+([eE][-+]?\d+)?$|\$\{"}]},
    "str": {"type": ["string", "number"]},
    "any": {},
}


def build_schema(keys: Mapping[str, Key]) -> dict[str, Any]:
    """The schema (draft 2020-12) of an experiment with its task put under ``train``; ``keys`` are the engine's.

    Engine arguments nest freely; written with hyphens, they are let through unchecked.
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "flagvega experiment",
        "description": "Variables of your own, which other keys refer to, are not in it.",
        "type": "object",
        "properties": {
            "defaults": {"type": "array", "description": "Files to put together, by hydra's rules."},
            "action": {"type": "string", "description": "The action when the command line names none."},
            "experiment": _block(Experiment, _ignored("experiment")),
            "train": {
                "type": "object",
                "properties": {name: {"$ref": "#/$defs/arguments"} for name in SECTIONS},
                "additionalProperties": False,
            },
            "inference": {"anyOf": [_block(InferenceBlock), {"type": "null"}]},
            "serve": {"type": ["array", "null"], "items": _block(ServeEntry)},
            **{name: _top_block(name, block) for name, block in BLOCKS.items()},
            **{name: {"type": ["object", "null"], "maxProperties": 0} for name in LATER},
            "hydra": {
                "type": "object",
                "properties": {"run": {"type": "object", "properties": {"dir": {"type": "string"}}}},
                "additionalProperties": False,
            },
        },
        "required": ["experiment"],
        "additionalProperties": False,
        "$defs": {
            "arguments": {
                "type": ["object", "null"],
                "properties": {name: {"anyOf": [_key(key), {"$ref": "#/$defs/nested"}]} for name, key in keys.items()},
                "patternProperties": {"-": {}},
                "additionalProperties": {"$ref": "#/$defs/nested"},
            },
            "nested": {"type": "object", "$ref": "#/$defs/arguments"},
        },
    }


def _key(key: Key) -> dict[str, Any]:
    of = key.type.removesuffix("_list")
    value: dict[str, Any] = dict(_SCALARS[of])
    if key.choices:
        value = {"anyOf": [{"enum": list(key.choices)}, _REFERENCE]}
    if key.type.endswith("_list"):
        value = {"anyOf": [{"type": "array", "items": value}, value]}
    schema: dict[str, Any] = {"anyOf": [value, {"type": "null"}]}
    if key.default is not None:
        schema["default"] = key.default
    if key.note:
        schema["description"] = key.note
    if key.target == "unsupported":
        schema["deprecated"] = True
    return schema


def _top_block(name: str, block: type) -> dict[str, Any]:
    schema = _block(block)
    return {"anyOf": [schema, {"type": "string"}]} if name in SHORTHANDS else schema


def _ignored(prefix: str) -> dict[str, Any]:
    """FlagScale's keys below a block that are let through with a warning, nested as in the YAML."""
    found: dict[str, Any] = {}
    for row in rows():
        if row.treatment == "ignored" and row.key.startswith(f"{prefix}."):
            node, names = found, row.key.removeprefix(f"{prefix}.").split(".")
            for name in names[:-1]:
                node = node.setdefault(name, {})
            node[names[-1]] = row.note
    return found


def _block(block: type, ignored: Mapping[str, Any] | None = None) -> dict[str, Any]:
    ignored = ignored or {}
    properties = {each.name: _entry(each, ignored.get(each.name)) for each in entries(block)}
    for name, note in ignored.items():
        properties.setdefault(name, {"description": f"ignored: {note}", "deprecated": True})
    return {
        "type": "object",
        "properties": properties,
        "required": [each.name for each in entries(block) if each.required],
        "additionalProperties": False,
    }


def _entry(each: Entry, ignored: Mapping[str, Any] | None) -> dict[str, Any]:
    schema = _shape(each.shape, ignored)
    if not each.required:
        schema = {"anyOf": [schema, {"type": "null"}]}
    if each.default is not None:
        schema["default"] = each.default
    if each.doc:
        schema["description"] = each.doc
    return schema


def _shape(shape: Shape, ignored: Mapping[str, Any] | None = None) -> dict[str, Any]:
    if shape.kind == "block" and shape.block:
        return _block(shape.block, ignored)
    value = _block(shape.block) if shape.block else _limited(shape)
    if shape.kind == "list":
        return {"type": "array", "items": value}
    if shape.kind == "mapping":
        return {"type": "object", "additionalProperties": value}
    return value


def _limited(shape: Shape) -> dict[str, Any]:
    if shape.choices:
        return {"anyOf": [{"enum": list(shape.choices)}, _REFERENCE]}
    limits = {"minimum": shape.minimum, "maximum": shape.maximum}
    return {**_SCALARS[shape.holds], **{name: limit for name, limit in limits.items() if limit is not None}}
