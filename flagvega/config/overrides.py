"""Changes that the command line makes to a composed configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flagvega.config.command import Override
from flagvega.config.nearest import nearest
from flagvega.config.report import COMMAND_LINE
from flagvega.config.source import scan_value
from flagvega.errors import Fault

_NAME: Final = r"[^.\s\[\]]+(\[\d+\])*"
_KEY: Final = re.compile(rf"{_NAME}(\.{_NAME})*")
_PART: Final = re.compile(r"\[\d+\]|[^.\[\]]+")
_PLAIN_WORD: Final = re.compile(r"[-+.\w]+")
_FLOAT: Final = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def parse_value(text: str) -> Any:
    """A value typed on the command line: YAML where it looks like it, else the text as it stands."""
    if _FLOAT.fullmatch(text):
        return float(text)
    if not text or not (_PLAIN_WORD.fullmatch(text) or text[0] in "[{'\""):
        return text
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text
    return value if value is None or isinstance(value, (bool, int, float, str, list, dict)) else text


def apply(config: DictConfig, override: Override, places: dict[str, str]) -> Iterator[Fault]:
    """Change the configuration as the command line says."""
    key, wrong = _in_lists(config, override.key)
    if key.split(".")[0] == "hydra" and key != "hydra.run.dir":
        yield Fault(f"hydra's setting '{key}' is refused", override.place, "only hydra.run.dir is read")
    elif not _KEY.fullmatch(override.key):
        yield Fault(
            f"'{override.key}' is not a key", override.place, "write the path with dots: train.model.num_layers=8"
        )
    elif wrong:
        yield Fault(wrong, override.place, "entries of a list have numbers from 0: serve[0].engine_args.port=8000")
    elif override.remove:
        yield from _remove(config, replace(override, key=key), places)
    elif faults := scan_value(override.value, override.place):
        yield from faults
    elif key != "hydra.run.dir":
        yield from _set(config, replace(override, key=key))
        _place(key, parse_value(override.value), places)


def _in_lists(config: DictConfig, key: str) -> tuple[str, str]:
    """(the key with its entries of lists as ``serve[0]``, what is wrong with one of them)."""
    node: Any = OmegaConf.to_container(config, resolve=False)
    path = ""
    for part in _PART.findall(key):
        if isinstance(node, list):
            number = part.strip("[]")
            if not number.isdecimal() or int(number) >= len(node):
                return key, f"'{path}' is a list of {len(node)}: it has no '{number}'"
            path, node = f"{path}[{number}]", node[int(number)]
        else:
            path += part if part.startswith("[") or not path else f".{part}"
            node = node.get(part) if isinstance(node, dict) else None
    return path, ""


def _place(key: str, value: Any, places: dict[str, str]) -> None:
    """Note that a value is from the command line; of a block, only what it gives, for the rest stays as it was."""
    places[key] = f"{COMMAND_LINE}{key}"
    if isinstance(value, dict):
        for name, inner in value.items():
            _place(f"{key}.{name}", inner, places)
        return
    for below in [other for other in places if other.startswith((f"{key}.", f"{key}["))]:
        del places[below]


def _remove(config: DictConfig, override: Override, places: dict[str, str]) -> Iterator[Fault]:
    if override.key.endswith("]"):
        yield Fault(f"'{override.key}' is an entry of a list", override.place, "write the list anew: key=[...]")
        return
    parent, _, leaf = override.key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    if isinstance(node, DictConfig) and leaf in node:
        del node[leaf]
        return
    near = nearest(override.key, [key for key in places if not key.endswith("]")], 1)
    fix = f"did you mean '~{near[0]}'?" if near else ""
    yield Fault(f"there is no key '{override.key}' to remove", override.place, fix)


def _set(config: DictConfig, override: Override) -> Iterator[Fault]:
    try:
        OmegaConf.update(config, override.key, parse_value(override.value), merge=True, force_add=True)
    except OmegaConfBaseException as error:
        yield Fault(f"'{override.value}' is not a value: {str(error).splitlines()[0]}", override.place)
