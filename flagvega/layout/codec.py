"""Plans as JSON: strict both ways. ``decisions`` make the plan's hash, ``predictions`` do not."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from flagvega.errors import ConfigError, Fault
from flagvega.layout.plan import SCHEMA, Plan

_OUTSIDE_DECISIONS = ("schema", "kind", "predictions")
_KNOWN_NOT_RUN = {"serve": "plans for serving", "instances": "plans for serving", "pairs": "plans for serving"}


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain JSON; empty predictions are left out."""
    fields = _to_json(plan)
    document = {"schema": plan.schema, "kind": plan.kind}
    document["decisions"] = {name: value for name, value in fields.items() if name not in _OUTSIDE_DECISIONS}
    if plan.predictions:
        document["predictions"] = plan.predictions
    return document


def plan_from_json(obj: object, source: str = "plan") -> Plan:
    """The plan in a JSON document; ConfigError with every fault, each at ``<source> <path>``."""
    reader = _Reader(source)
    document = reader.mapping(obj, "")
    reader.unknown(document, ("schema", "kind", "decisions", "predictions"), "")
    if document.get("schema") != SCHEMA:
        reader.fault("schema", f"schema {document.get('schema')!r} is not one we read", f"write {SCHEMA}")
    if document.get("kind") != "train":
        reader.fault("kind", f"kind {document.get('kind')!r} is not run yet", "write train")
    if "decisions" not in document:
        reader.fault("decisions", "missing")
    predictions = reader.mapping(document.get("predictions", {}), "predictions")
    reader.stop()
    fields = reader.fields(Plan, document["decisions"], "decisions", skip=_OUTSIDE_DECISIONS)
    reader.stop()
    plan = Plan(**fields, predictions=dict(predictions))
    _refuse_not_run(plan, reader)
    reader.stop()
    return plan


def plan_hash(plan: Plan) -> str:
    """SHA-256 of the decisions; equal plans have equal hashes, whatever they predict."""
    decisions = plan_to_json(plan)["decisions"]
    return hashlib.sha256(json.dumps(decisions, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _to_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return [_to_json(entry) for entry in value] if isinstance(value, tuple) else value


def _refuse_not_run(plan: Plan, reader: _Reader) -> None:
    for i, stage in enumerate(plan.stages):
        if len(stage.replicas) != 1:
            reader.fault(
                f"decisions.stages[{i}].replicas",
                f"a stage held by {len(stage.replicas)} meshes is known but not run yet",
                "give the stage one replica",
            )
    for i, chunk in enumerate(plan.chain):
        if chunk.mtp:
            reader.fault(f"decisions.chain[{i}].mtp", "multi-token prediction is known but not run yet", "write false")


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


class _Reader:
    """Turns JSON values into the types of dataclass fields and gathers what does not fit."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.faults: list[Fault] = []

    def fault(self, path: str, what: str, fix: str = "") -> None:
        self.faults.append(Fault(what, where=f"{self.source} {path}".strip(), fix=fix))

    def stop(self) -> None:
        if self.faults:
            raise ConfigError(self.faults)

    def mapping(self, value: object, path: str) -> Mapping[str, Any]:
        if isinstance(value, Mapping):
            return value
        self.fault(path, f"expected an object, found {value!r}")
        return {}

    def unknown(self, value: Mapping[str, Any], known: tuple[str, ...], path: str) -> None:
        for name in value:
            if name in known:
                continue
            here = f"{path}.{name}" if path else str(name)
            if name in _KNOWN_NOT_RUN:
                self.fault(here, f"{_KNOWN_NOT_RUN[name]} are known but not run yet")
                continue
            near = get_close_matches(str(name), known, n=1)
            self.fault(here, f"unknown field '{name}'", f"did you mean '{near[0]}'?" if near else "")

    def fields(self, kind: type, value: object, path: str, skip: tuple[str, ...] = ()) -> dict[str, Any]:
        """Constructor arguments of a dataclass."""
        given = self.mapping(value, path)
        fields = [field for field in dataclasses.fields(kind) if field.name not in skip]
        self.unknown(given, tuple(field.name for field in fields), path)
        found = {}
        for field in fields:
            here = f"{path}.{field.name}"
            if field.name in given:
                found[field.name] = self.value(_hints(kind)[field.name], given[field.name], here)
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                self.fault(here, "missing")
        return found

    def value(self, kind: Any, value: Any, path: str) -> Any:
        """A value of a field's type; what does not fit becomes a fault and None."""
        origin, args = get_origin(kind), get_args(kind)
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            before = len(self.faults)
            fields = self.fields(kind, value, path)
            return kind(**fields) if len(self.faults) == before else None
        if origin is tuple:
            return self._tuple(args, value, path)
        if origin is Literal:
            return self._checked(value, value in args, path, " or ".join(map(str, args)))
        if origin in (Union, UnionType):
            inner = next(arg for arg in args if arg is not NoneType)
            return None if value is None else self.value(inner, value, path)
        fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        return self._checked(value, fits, path, f"{kind.__name__}")

    def _tuple(self, args: tuple[Any, ...], value: Any, path: str) -> Any:
        if not isinstance(value, list):
            return self._checked(value, False, path, "a list")
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) != len(value):
            return self._checked(value, False, path, f"a list of {len(kinds)}")
        pairs = zip(kinds, value, strict=True)
        return tuple(self.value(kind, entry, f"{path}[{i}]") for i, (kind, entry) in enumerate(pairs))

    def _checked(self, value: Any, fits: bool, path: str, expected: str) -> Any:
        if fits:
            return value
        self.fault(path, f"expected {expected}, found {value!r}")
        return None
