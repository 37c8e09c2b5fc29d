"""Arguments of the vLLM server: one row each, as vLLM's own parser has them.

The table is ``arguments.csv``, written by ``tools/make_vllm_arguments.py`` from an installed vLLM. ``gone.csv`` has
those of older ones, and what to write today.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from flagvega.config.keys import Key

TABLE = Path(__file__).with_name("arguments.csv")
GONE = Path(__file__).with_name("gone.csv")
VLLM = "0.32.0"
"""The vLLM that the table is of; a test compares the table's head."""

_CODE = "it would run Python that a YAML names"
REFUSED: Mapping[str, str] = {
    "api_key": "a key never stands in a YAML: export VLLM_API_KEY, and the server asks clients for it",
    "config": "write the arguments themselves",
    "data_parallel_size": "write resources.num_replicas: each replica is an instance of its own",
    "distributed_executor_backend": "instances are on one host, and vLLM chooses",
    "hf_token": "delete it: models are folders of the host, and nothing is downloaded",
    "middleware": _CODE,
    "nnodes": "an instance is on one host",
    "worker_cls": _CODE,
    "worker_extension_cls": _CODE,
    "scheduler_cls": _CODE,
    "logits_processors": _CODE,
    "tool_parser_plugin": _CODE,
    "reasoning_parser_plugin": _CODE,
    "io_processor_plugin": _CODE,
}
"""Arguments that are known and not taken."""


@dataclass(frozen=True)
class Argument:
    """A row of the table."""

    key: Key
    form: Literal["flag", "switch", "value", "values"]
    """``--x``, ``--x`` or ``--no-x``, ``--x value``, ``--x value value``."""


@cache
def arguments() -> Mapping[str, Argument]:
    """Every argument by name."""
    with TABLE.open(newline="") as file:
        next(file)  # the version
        return {row["key"]: _argument(row) for row in csv.DictReader(file)}


@cache
def keys() -> Mapping[str, Key]:
    """The key of every argument by name, be it of this vLLM or of an older one."""
    with GONE.open(newline="") as file:
        gone = {
            row["key"]: Key(row["key"], "any", None, (), "unsupported", row["note"]) for row in csv.DictReader(file)
        }
    return gone | {name: argument.key for name, argument in arguments().items()}


def _argument(row: Mapping[str, str]) -> Argument:
    name, kind, form = row["key"], row["type"], row["form"]
    choices = tuple(json.loads(row["choices"])) if row["choices"] and kind != "any" else ()
    refused = REFUSED.get(name)
    target, note = ("unsupported", refused) if refused else ("server", "")
    return Argument(Key(name, kind, None, choices, target, note), form)  # type: ignore[arg-type]


def words(given: Mapping[str, Any]) -> Iterator[str]:
    """Arguments as vLLM's command line takes them."""
    for name, value in given.items():
        flag, form = f"--{name.replace('_', '-')}", arguments()[name].form
        if form in ("flag", "switch"):
            if value:
                yield flag
            elif form == "switch":
                yield f"--no-{flag[2:]}"
        elif form == "values":
            yield flag
            yield from (_text(item) for item in (value if isinstance(value, (list, tuple)) else [value]))
        else:
            # In one word: a value may begin with a dash.
            yield f"{flag}={_text(value)}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
