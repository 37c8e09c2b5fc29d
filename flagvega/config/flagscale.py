"""What becomes of FlagScale's experiment-level keys; ``flagscale.csv`` has a row for each.

Its engine arguments (``train.*``) are classed by the engine.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final, Literal, cast

from flagvega.config.report import Report

_TEXT_SCRIPT: Final = re.compile(
    r"(.*/)?(flagscale/(train/)?(\w+/)*train(_\w+)?\.py|pretrain_gpt\.py|flagscale/inference/inference_\w+\.py)"
)
_OTHER_MODEL: Final = re.compile(r"rwkv|mamba|bert|_t5|retro", re.IGNORECASE)
_IMAGE_SCRIPT: Final = re.compile(r"llava|vision|multimodal|clip|emu|robo|_vl|_mm\b", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """A key, or all keys below it, and what becomes of it."""

    key: str
    treatment: Literal["honoured", "mapped", "ignored", "refused"]
    note: str


@cache
def rows() -> tuple[Row, ...]:
    """The table in its order."""
    lines = files("flagvega.config").joinpath("flagscale.csv").read_text(encoding="utf-8").splitlines()
    return tuple(Row(row["key"], cast(Any, row["class"]), row["note"]) for row in csv.DictReader(lines))


def find_row(path: str) -> Row | None:
    """The row of a key path: its own, else that of its closest parent."""
    table = {row.key: row for row in rows()}
    while path:
        if path in table:
            return table[path]
        path = path.rpartition(".")[0]
    return None


def drop_unused(values: Mapping[str, Any], report: Report, path: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
    """(the values that mean something here, key path -> value of those dropped with a warning or a fault)."""
    table = {row.key: row for row in rows() if row.treatment in ("ignored", "refused")}
    kept, dropped = dict[str, Any](), dict[str, Any]()
    for name, value in values.items():
        full = f"{path}.{name}" if path else name
        row = table.get(full)
        if row is not None and row.treatment == "ignored":
            report.warn(full, f"ignored: {row.note}")
            dropped[full] = value
        elif row is not None:
            report.fault(full, f"'{full}' is refused", row.note)
        elif isinstance(value, Mapping) and any(key.startswith(f"{full}.") for key in table):
            kept[name], below = drop_unused(value, report, full)
            dropped |= below
        else:
            kept[name] = value
    return kept, dropped


def check_entrypoint(entrypoint: str, path: str, report: Report) -> None:
    """Only scripts that do what the engine's program does may be replaced by it."""
    if not _TEXT_SCRIPT.fullmatch(entrypoint):
        fix = "delete the key: the engine brings its program"
        report.fault(path, f"'{entrypoint}' is not run: an entrypoint of your own has no place here", fix)
    elif _IMAGE_SCRIPT.search(entrypoint.rpartition("/")[2]):
        report.fault(path, f"'{entrypoint}' works on images", "flagvega is for language models on text")
    elif _OTHER_MODEL.search(entrypoint.rpartition("/")[2]):
        report.fault(path, f"'{entrypoint}' trains another kind of model", "flagvega trains decoders of the GPT family")
