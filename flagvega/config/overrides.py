"""Changes that the command line makes to a composed configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flagvega.config.command import Override
from flagvega.config.nearest import nearest
from flagvega.config.report import COMMAND_LINE
from flagvega.config.source import scan_value
from flagvega.errors import Fault

_KEY: Final = re.compile(r"[^.\s\[\]]+(\.[^.\s\[\]]+)*")
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
    key = override.key
    if key.split(".")[0] == "hydra" and key != "hydra.run.dir":
        yield Fault(f"hydra's setting '{key}' is refused", override.place, "only hydra.run.dir is read")
    elif not _KEY.fullmatch(key):
        yield Fault(f"'{key}' is not a key", override.place, "write the path with dots: train.model.num_layers=8")
    elif override.remove:
        yield from _remove(config, override, places)
    elif faults := scan_value(override.value, override.place):
        yield from faults
    elif key != "hydra.run.dir":
        yield from _set(config, override)
        _place(key, parse_value(override.value), places)


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
    parent, _, leaf = override.key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    if isinstance(node, DictConfig) and leaf in node:
        del node[leaf]
        return
    near = nearest(override.key, [key for key in places if "[" not in key], 1)
    fix = f"did you mean '~{near[0]}'?" if near else ""
    yield Fault(f"there is no key '{override.key}' to remove", override.place, fix)


def _set(config: DictConfig, override: Override) -> Iterator[Fault]:
    try:
        OmegaConf.update(config, override.key, parse_value(override.value), merge=True, force_add=True)
    except OmegaConfBaseException as error:
        yield Fault(f"'{override.value}' is not a value: {str(error).splitlines()[0]}", override.place)
