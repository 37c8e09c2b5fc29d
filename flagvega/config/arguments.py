"""Reads the task: engine arguments, nested as the user likes, into one flat mapping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from flagvega.config.keys import Key
from flagvega.config.nearest import nearest
from flagvega.config.report import Report
from flagvega.config.values import EXPECTED, WrongTypeError, coerce, describe, how_to_write

SECTIONS: Final = ("system", "model", "data")
"""What ``train`` is made of; below these, nesting is free."""


def argument_homes(keys: Mapping[str, Key], values: Mapping[str, Any]) -> dict[str, str]:
    """Engine argument -> where it belongs, in words: where it is given already, else anywhere under ``train``."""
    words = dict.fromkeys(keys, "an engine argument: write it under train.system, train.model or train.data")
    train = values.get("train")
    if isinstance(train, Mapping):
        given = [(path, name) for path, name, _ in _leaves(train, "train") if path.count(".") > 1 and name in keys]
        words |= {name: f"an engine argument: write it as {path}" for path, name in reversed(given)}
    return words


def read_arguments(
    values: Mapping[str, Any], keys: Mapping[str, Key], report: Report
) -> tuple[dict[str, Any], dict[str, str]]:
    """(argument -> value, argument -> its path) of everything under ``train``; faults go to ``report``.

    A leaf that is None counts as not given. A leaf may be given twice with one value.
    """
    train = values.get("train")
    if not isinstance(train, Mapping):
        fix = "add to the experiment YAML: defaults: [{train: <name of a file in train/>}, _self_]"
        what = "'train' is missing" if train is None else f"expected a mapping, got {describe(train)}"
        report.fault("train", what, fix)
        return {}, {}
    found: dict[str, Any] = {}
    where: dict[str, str] = {}
    for section in _sections(train, keys, report):
        for path, name, value in _leaves(train[section], f"train.{section}"):
            if name not in keys:
                report.unknown(path, keys, "under 'train'")
            elif value is not None:
                take_argument(keys[name], value, path, found, where, report)
    return found, where


def _sections(train: Mapping[str, Any], keys: Mapping[str, Key], report: Report) -> Iterator[str]:
    """The sections that are there and can be read."""
    for name, value in train.items():
        path = f"train.{name}"
        if name in SECTIONS:
            if isinstance(value, Mapping):
                yield name
            elif value is not None:
                report.fault(path, f"expected a mapping, got {describe(value)}")
        elif name == "train" and isinstance(value, Mapping):
            fix = "the task file holds system, model and data at its root: it is put under 'train' by itself"
            report.fault(path, "'train' inside 'train'", fix)
        elif name.replace("-", "_") in keys and not isinstance(value, Mapping):
            report.fault(path, f"'{name}' does not belong directly under 'train'", report.homes[name.replace("-", "_")])
        else:
            report.unknown(path, SECTIONS, "directly under 'train'")


def _leaves(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, str, Any]]:
    """(path, name with ``_``, value) of each leaf."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}.{key}")
        else:
            yield f"{path}.{key}", str(key).replace("-", "_"), value


def take_argument(
    key: Key, value: Any, path: str, found: dict[str, Any], where: dict[str, str], report: Report
) -> None:
    """Put one argument, of its key's type, into ``found`` and its path into ``where``; else a fault."""
    try:
        taken = coerce(key.type, value)
    except WrongTypeError:
        expected = f"one of {_words(key)}" if key.choices else EXPECTED[key.type]
        report.fault(path, f"'{key.name}': expected {expected}, got {describe(value)}", how_to_write(key.type, value))
        return
    wrong = [item for item in (taken if isinstance(taken, list) else [taken]) if item not in key.choices]
    if key.choices and wrong:
        near = nearest(wrong[0], [str(choice) for choice in key.choices], 1) if isinstance(wrong[0], str) else ()
        hint = f"did you mean '{near[0]}'? " if near else ""
        report.fault(path, f"'{key.name}' cannot be {describe(wrong[0])}", f"{hint}one of: {_words(key)}")
    elif key.name in found and found[key.name] != taken:
        first = f"{describe(found[key.name])} at {report.place(where[key.name])}"
        what = f"'{key.name}' is given twice: {first}, and {describe(taken)} here"
        report.fault(path, what, f"keep one of them (FlagScale took the last; ~{where[key.name]} removes the first)")
    else:
        if key.name not in found and key.target == "unsupported" and not _asks_nothing(key, taken):
            report.fault(path, f"'{key.name}' is known, but not supported", key.note)
        found.setdefault(key.name, taken)
        where.setdefault(key.name, path)


def _asks_nothing(key: Key, value: Any) -> bool:
    """Whether a value leaves things as they are without the key."""
    return bool(value == key.default or (key.type == "bool" and not value and not key.default))


def _words(key: Key) -> str:
    return ", ".join(str(choice) for choice in key.choices)
