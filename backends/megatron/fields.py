"""Fields of the engine's configuration classes, read from its source without importing it."""

from __future__ import annotations

import ast
import importlib.util
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

SNAPSHOT = Path(__file__).with_name("fields.json")

CLASSES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "TransformerConfig": (
        ("model_parallel_config.py", "ModelParallelConfig"),
        ("transformer/transformer_config.py", "TransformerConfig"),
    ),
    "OptimizerConfig": (("optimizer/optimizer_config.py", "OptimizerConfig"),),
    "DistributedDataParallelConfig": (
        ("distributed/distributed_data_parallel_config.py", "DistributedDataParallelConfig"),
    ),
    "GPTDatasetConfig": (
        ("datasets/blended_megatron_dataset_config.py", "BlendedMegatronDatasetConfig"),
        ("datasets/gpt_dataset.py", "GPTDatasetConfig"),
    ),
}
"""Each class with the files and classes that its fields come from, bases first."""

Fields = dict[str, dict[str, dict[str, Any]]]


@cache
def fields() -> Fields:
    """Class -> field -> {type, default, names}: of the installed megatron-core, else of the snapshot."""
    folder = installed()
    return read_fields(folder) if folder else json.loads(SNAPSHOT.read_text())


def installed() -> Path | None:
    """The folder of the installed megatron-core; nothing is imported but its empty namespace."""
    try:
        spec = importlib.util.find_spec("megatron")
    except ValueError:
        return None
    roots = [Path(root) / "core" for root in (spec.submodule_search_locations or ())] if spec else []
    return next((root for root in roots if (root / "model_parallel_config.py").is_file()), None)


def read_fields(folder: Path) -> Fields:
    """Fields from the source in ``folder`` (``megatron/core``)."""
    return {
        name: {key: value for part in parts for key, value in _class_fields(folder, *part).items()}
        for name, parts in CLASSES.items()
    }


def _class_fields(folder: Path, file: str, name: str) -> dict[str, dict[str, Any]]:
    tree = _parse(folder / file)
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    found = {
        line.target.id: _field(line)
        for line in body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and not line.target.id.startswith("_")
    }
    return {name: field for name, field in found.items() if field.pop("init", True)}


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _field(line: ast.AnnAssign) -> dict[str, Any]:
    """Type as written; default where it is a literal; other names (``argparse_meta``) where given."""
    found: dict[str, Any] = {"type": ast.unparse(line.annotation)}
    value = line.value
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
        given = {keyword.arg: keyword.value for keyword in value.keywords}
        meta = _literal(given.get("metadata")) or {}
        found |= {"init": _literal(given["init"])} if "init" in given else {}
        found |= meta.get("argparse_meta", {})
        value = given.get("default")
    if "default" not in found and (default := _literal(value)) is not None:
        found["default"] = default
    return found


def _literal(node: ast.expr | None) -> Any:
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None
