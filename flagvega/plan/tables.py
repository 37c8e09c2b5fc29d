"""Files of measured costs: JSON documents and CSV tables, read with every fault told, and written."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from flagvega.errors import ConfigError, Fault
from flagvega.plan.profile import (
    BACKWARD_SHARE,
    KINDS,
    SCHEMA,
    CollectiveRow,
    LayerRow,
    LinkRow,
    OptimizerRow,
    OverheadRow,
    Profile,
    Validity,
)
from flagvega.platform import all_chips, find_chip

TABLES: Mapping[str, type] = {
    "layers": LayerRow,
    "optimizer": OptimizerRow,
    "links": LinkRow,
    "collectives": CollectiveRow,
    "overheads": OverheadRow,
}
SUM = "forward_backward_s"
_ROW_NAMES = {"layer": "layers", "link": "links", "collective": "collectives", "overhead": "overheads"}
_OR = dict.fromkeys(("forward_s", "backward_s"), f"give forward_s and backward_s, or {SUM}")
_COUNTS = ("tp", "cp", "ep", "micro_batch", "ranks", "hosts")
_TEXTS = ("row", "chip", "other", "kind", "model", "dtype", "engine", "date")
_RATES = ("bytes_per_s", "parameters")


def read_profile(path: Path) -> Profile:
    """The measured costs of a file; ConfigError with all of its faults."""
    try:
        text = path.read_text(encoding="utf-8")
        document = _read_csv(text) if path.suffix.lower() == ".csv" else json.loads(text)
    except OSError as error:
        fix = "write one with action=profile"
        raise ConfigError(Fault(f"the profile cannot be read: {error.strerror}", str(path), fix)) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(Fault(f"the profile cannot be read: {error}", str(path))) from error
    except json.JSONDecodeError as error:
        fix = "write JSON, or a table that ends in .csv"
        raise ConfigError(Fault(f"this is no JSON: {error.msg}", f"{path}:{error.lineno}", fix)) from error
    return profile_from_json(document, str(path))


def profile_from_json(document: Any, where: str = "profile") -> Profile:
    """The profile of a document; ConfigError with all of its faults."""
    if not isinstance(document, Mapping):
        raise ConfigError(Fault("a profile is an object with tables", where, f"tables: {', '.join(TABLES)}"))
    faults: list[Fault] = []
    if document.get("schema", SCHEMA) != SCHEMA:
        fix = "measure again with action=profile"
        raise ConfigError(Fault(f"schema {document['schema']} is not known", where, fix))
    for name in document:
        if name not in (*TABLES, "schema", "kind", "valid_for"):
            faults.append(Fault(f"there is no table '{name}'", where, _nearest(name, TABLES)))
    tables = {}
    for name, kind in TABLES.items():
        rows = document.get(name, ())
        if not isinstance(rows, Sequence) or isinstance(rows, str):
            faults.append(Fault(f"{name} is not a list of rows", where))
            continue
        tables[name] = tuple(
            row for i, raw in enumerate(rows) if (row := _read_row(raw, kind, _place(where, name, i, raw), faults))
        )
    valid = _read_valid(document.get("valid_for", {}), f"{where}: valid_for", faults)
    if not faults and not tables["layers"]:
        faults.append(Fault("it has no layers", where, "give rows with chip, tp, micro_batch, kind, forward_s, ..."))
    if faults:
        raise ConfigError(faults)
    return Profile(**tables, valid=valid)


def profile_to_json(profile: Profile) -> dict[str, Any]:
    """As a document; fields that have their default are left out."""
    document: dict[str, Any] = {"schema": SCHEMA, "kind": "profile", "valid_for": _given(profile.valid)}
    return document | {name: [_given(row) for row in getattr(profile, name)] for name in TABLES}


def profile_to_csv(profile: Profile) -> str:
    """As one table: the first column says of which kind a row is."""
    rows: list[dict[str, Any]] = [{"row": "valid_for"} | _given(profile.valid)]
    for name in TABLES:
        word = next((word for word, table in _ROW_NAMES.items() if table == name), name)
        rows += [{"row": word} | _given(row) for row in getattr(profile, name)]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _read_csv(text: str) -> dict[str, Any]:
    """The document that a table is; a table without the column ``row`` has layers only."""
    document: dict[str, Any] = {name: [] for name in TABLES}
    reader = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    for raw in reader:
        row: dict[str, Any] = {name: _parse(name, value) for name, value in raw.items() if name and value}
        if not row:
            continue
        kind = str(row.pop("row", "layer"))
        row["#line"] = reader.line_num
        if kind == "valid_for":
            del row["#line"]
            document["valid_for"] = row
        else:
            document.setdefault(_ROW_NAMES.get(kind, kind), []).append(row)
    return document


def _parse(name: str, text: str) -> Any:
    text = text.strip()
    if name in _TEXTS:
        return text
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _place(where: str, table: str, index: int, raw: Any) -> str:
    if isinstance(raw, Mapping) and "#line" in raw:
        return f"{where}:{raw['#line']}"
    return f"{where}: {table}[{index}]"


def _read_row(raw: Any, kind: type, where: str, faults: list[Fault]) -> Any:
    if not isinstance(raw, Mapping):
        faults.append(Fault("a row is an object", where))
        return None
    row = {name: value for name, value in raw.items() if name != "#line" and value is not None}
    found = len(faults)
    is_layer = kind is LayerRow
    if is_layer:
        row = _split_sum(row, where, faults)
    known = {field.name: field for field in fields(kind) if field.name != "is_split"}
    for name in row:
        if name not in known and name != "is_split":
            faults.append(Fault(f"'{name}' is no column of {_table_of(kind)}", where, _nearest(name, known)))
    for name, field in known.items():
        if name in row:
            faults += _value_faults(name, row[name], field, where)
        elif field.default is MISSING:
            faults.append(Fault(f"{name} is missing", where, _OR.get(name, "")))
    if is_layer and ("kind" in row) == ("layer" in row):
        faults.append(Fault("a row of a layer has either kind or layer", where, f"kinds: {', '.join(KINDS)}"))
    for name in ("chip", "other"):
        if isinstance(row.get(name), str):
            row[name] = _chip_name(row[name], where, faults)
    return kind(**row) if len(faults) == found else None


def _split_sum(row: dict[str, Any], where: str, faults: list[Fault]) -> dict[str, Any]:
    if SUM not in row:
        return row
    both = row.pop(SUM)
    if "forward_s" in row or "backward_s" in row:
        faults.append(Fault(f"{SUM} stands beside forward_s or backward_s", where, "keep one or the other"))
        return row
    if not _is_number(both) or both <= 0:
        faults.append(Fault(f"{SUM} is {both!r}", where, "write seconds, above 0"))
        both = 0.0
    return row | {"forward_s": both * (1 - BACKWARD_SHARE), "backward_s": both * BACKWARD_SHARE, "is_split": True}


def _value_faults(name: str, value: Any, field: Field[Any], where: str) -> Iterator[Fault]:
    if name in ("chip", "other"):
        if not isinstance(value, str):
            yield Fault(f"{name} is {value!r}, not a name", where)
    elif name == "kind":
        if value not in KINDS:
            yield Fault(f"there is no kind of layer {value!r}", where, _nearest(str(value), KINDS))
    elif field.type == "bool":
        if not isinstance(value, bool):
            yield Fault(f"{name} is {value!r}", where, "write true or false")
    elif name in _COUNTS or name == "layer":
        least = 0 if name == "layer" else 1
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            yield Fault(f"{name} is {value!r}", where, f"write a whole number from {least} on")
    elif not _is_number(value) or value < 0 or (name in _RATES and value == 0):
        yield Fault(f"{name} is {value!r}", where, f"write a number {'above' if name in _RATES else 'from'} 0")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _read_valid(raw: Any, where: str, faults: list[Fault]) -> Validity:
    known = {field.name for field in fields(Validity)}
    if not isinstance(raw, Mapping):
        faults.append(Fault("valid_for is an object", where))
        return Validity()
    unknown = [name for name in raw if name not in known]
    faults += [Fault(f"'{name}' is not known", where, _nearest(name, known)) for name in unknown]
    seq = raw.get("seq")
    if seq is not None and (not isinstance(seq, int) or seq < 1):
        faults.append(Fault(f"seq is {seq!r}", where, "write the tokens of a sample"))
    texts = {name: str(raw[name]) for name in known - {"seq"} if raw.get(name) is not None}
    return replace(Validity(seq=seq), **texts)  # type: ignore[arg-type]  # texts only


def _chip_name(name: str, where: str, faults: list[Fault]) -> str:
    if name in all_chips():
        return name
    try:
        return find_chip(name).name
    except ConfigError as error:
        faults += [replace(fault, where=where) for fault in error.faults]
        return name


def _given(row: Any) -> dict[str, Any]:
    values = asdict(row)
    kept = {
        field.name: values[field.name]
        for field in fields(row)
        if field.default is MISSING or values[field.name] != field.default
    }
    if kept.pop("is_split", False):
        kept[SUM] = kept.pop("forward_s") + kept.pop("backward_s")
    return kept


def _table_of(kind: type) -> str:
    return next(name for name, its in TABLES.items() if its is kind)


def _nearest(name: str, known: Any) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
