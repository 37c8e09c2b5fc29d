"""Write backends/megatron/{arguments.csv,fields.json}: the table of engine arguments and the fields behind it.

Sources: the installed megatron-core (fields, by AST), ``tools/megatron_arguments.csv`` (command-line arguments
of Megatron-LM of 2026 and of FlagScale v0.6.0) and ``tools/argument_rules.yaml`` (what becomes of each).
"""

from __future__ import annotations

import ast
import csv
import io
import json
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from backends.megatron.fields import SNAPSHOT, Fields, installed, read_fields  # noqa: E402

TABLE = ROOT / "backends/megatron/arguments.csv"
COLUMNS = ("key", "type", "default", "choices", "target", "note")
_CLASSES = {
    "T": "TransformerConfig",
    "O": "OptimizerConfig",
    "D": "DistributedDataParallelConfig",
    "G": "GPTDatasetConfig",
}
_SCALARS = {"int", "float", "str", "bool"}
_INTERNAL = ("Callable", "dtype", "ContextManager", "Megatron", "Dict", "RecipeConfig", "Tuple")
"""Types of fields that no YAML can give."""

Row = dict[str, Any]


def make_table(fields: Fields) -> str:
    """The table as CSV text; SystemExit naming rules that match nothing."""
    rules = yaml.safe_load((ROOT / "tools/argument_rules.yaml").read_text())
    rows = {**_from_fields(fields), **_from_command_line(), **_new(rules["new"])}
    _add_positives(rows, rules["fields"])
    for name, change in rules["override"].items():
        rows[name].update({key: value for key, value in change.items() if key != "why"})
    named = {*rules["fields"], *rules["plan"], *rules["loop"]}
    if unknown := named - set(rows):
        raise SystemExit(f"rules for unknown keys: {sorted(unknown)}")
    for name, row in rows.items():
        row["target"], row["note"] = _target(name, rules)
    return _text(rows)


def make_fields() -> Fields:
    """Fields of the installed megatron-core."""
    folder = installed()
    if folder is None:
        raise SystemExit("megatron-core is not installed")
    return read_fields(folder)


def _from_fields(fields: Fields) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for class_name in _CLASSES.values():
        for name, field in fields[class_name].items():
            if not any(word in field["type"] for word in _INTERNAL):
                kind, choices = _annotation(field["type"])
                rows.setdefault(name, {"type": kind, "default": field.get("default"), "choices": choices})
    return rows


def _annotation(text: str) -> tuple[str, list[Any]]:
    """Our type and the choices of an annotation."""
    node = ast.parse(text, mode="eval").body
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Optional":
        return _annotation(ast.unparse(node.slice))
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
        return "str", list(ast.literal_eval(ast.Tuple(getattr(node.slice, "elts", [node.slice]), ast.Load())))
    if text in _SCALARS:
        return text, []
    inner = ast.unparse(node.slice) if isinstance(node, ast.Subscript) else ""
    is_list = isinstance(node, ast.Subscript) and ast.unparse(node.value) in ("List", "list")
    return (f"{inner}_list", []) if is_list and inner in ("int", "float", "str") else ("any", [])


def _from_command_line() -> dict[str, Row]:
    return {line["key"]: _command_line_row(line) for line in _command_line()}


def _command_line() -> list[dict[str, str]]:
    with (ROOT / "tools/megatron_arguments.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _command_line_row(line: dict[str, str]) -> Row:
    if line["kind"] == "flag" or line["action"].endswith("BooleanOptionalAction"):
        return {"type": "bool", "default": False, "choices": []}
    kind = line["type"] or "str"
    kind = kind if kind in _SCALARS else "any"
    if line["nargs"] in ("*", "+") and kind != "any":
        kind = f"{kind}_list" if kind != "bool" else "any"
    choices = _evaluated(line["choices"])
    return {
        "type": kind,
        "default": _evaluated(line["default"]),
        "choices": [c for c in choices or [] if c is not None],
    }


def _evaluated(text: str) -> Any:
    """A literal as written in the source; what is computed there counts as not given."""
    try:
        return ast.literal_eval(text) if text else None
    except (ValueError, SyntaxError):
        return None


def _new(entries: dict[str, dict[str, Any]]) -> dict[str, Row]:
    return {name: {"choices": [], **entry} for name, entry in entries.items()}


def _add_positives(rows: dict[str, Row], targets: dict[str, str]) -> None:
    """``x`` beside ``no_x`` and ``disable_x``: on, as on the command line."""
    for line in _command_line():
        if line["action"] == "store_false" and line["dest"]:
            rows.setdefault(line["dest"], {"type": "bool", "choices": []})["default"] = True
    for target in targets.values():
        if target.startswith("not "):
            positive = next(other for other, its in targets.items() if its == target.removeprefix("not "))
            rows.setdefault(positive, {"type": "bool", "choices": []})["default"] = True


def _target(name: str, rules: dict[str, Any]) -> tuple[str, str]:
    if name in rules["fields"]:
        words = rules["fields"][name].split()
        return " ".join(f"{_CLASSES[word[0]]}{word[1:]}" if word != "not" else word for word in words), ""
    for section in ("plan", "loop"):
        if name in rules[section]:
            return section, ""
    for section in ("ignored", "unsupported"):
        if name in rules[section]:
            return section, rules[section][name]
    for section in ("ignored", "unsupported"):
        for pattern, note in rules[section].items():
            if fnmatchcase(name, pattern):
                return section, note
    raise SystemExit(f"no rule for {name}")


def _text(rows: dict[str, Row]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name, row in sorted(rows.items()):
        default = "" if row["default"] is None else json.dumps(row["default"])
        choices = json.dumps(row["choices"]) if row["choices"] else ""
        writer.writerow((name, row["type"], default, choices, row["target"], row["note"]))
    return out.getvalue()


if __name__ == "__main__":
    found = make_fields()
    SNAPSHOT.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    TABLE.write_text(make_table(found))
