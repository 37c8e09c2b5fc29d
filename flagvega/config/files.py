"""Finds the YAML files of an experiment, and refuses what must not be in them."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

import yaml

import flagvega
from flagvega.config.command import USAGE
from flagvega.config.nearest import nearest
from flagvega.config.source import Source, shown
from flagvega.errors import ConfigError, Fault

_ROOT: Final = Path(flagvega.__file__).resolve().parents[1]
_PLAIN_GROUP: Final = re.compile(r"/?[\w/-]+")
_PLAIN_NAME: Final = re.compile(r"[\w.-]+")


def find_folder(config_path: str | None) -> Path:
    """The folder of the YAML files: below the working directory, else below flagvega's own folder."""
    if config_path is None:
        raise ConfigError(Fault("--config-path is missing", "command line", f"{USAGE}\n    action=init writes one"))
    tried = [Path.cwd() / Path(config_path).expanduser(), _ROOT / config_path]
    for path in tried:
        if path.is_dir():
            return path.resolve()
        if path.is_file():
            fix = f"write --config-path {path.parent} --config-name {path.stem}"
            raise ConfigError(Fault(f"'{config_path}' is a file, not a folder", "command line: --config-path", fix))
    fix = f"tried: {', '.join(dict.fromkeys(str(path) for path in tried))}"
    raise ConfigError(Fault(f"no folder '{config_path}'", "command line: --config-path", fix))


def find_name(folder: Path, config_name: str | None) -> str:
    """The name of the experiment YAML in its folder; without one, the only one there is, or ``config``."""
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if config_name is None:
        if len(names) == 1 or "config" in names:
            return names[0] if len(names) == 1 else "config"
        what = "--config-name is missing"
    else:
        name = config_name.removesuffix(".yaml").removesuffix(".yml")
        if (folder / f"{name}.yaml").is_file():
            return name
        what = f"no '{name}.yaml' in {shown(folder)}"
    near = nearest(config_name or "", names, 1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    fix = f"{hint}there: {', '.join(names) or 'no .yaml file at all'}"
    raise ConfigError(Fault(what, "command line: --config-name", fix))


def file_faults(source: Source, folder: Path, replaced: Collection[str]) -> list[Fault]:
    """What a file must not hold: the file's own faults, hydra settings, and defaults that are not there."""
    faults = list(source.faults)
    for key, line in source.lines.items():
        parts = key.split(".")
        child = parts[1] != "run" if len(parts) == 2 else len(parts) == 3 and parts[1] == "run" and parts[2] != "dir"
        if parts[0] == "hydra" and child:
            fix = "of hydra's settings only hydra.run.dir is read: delete it"
            faults.append(Fault(f"hydra's setting '{key}' is refused", source.place(key, line), fix))
    if not faults and "defaults" in source.lines:
        defaults = yaml.safe_load(source.path.read_text(encoding="utf-8")).get("defaults")
        for i, entry in enumerate(defaults if isinstance(defaults, list) else []):
            faults += _default_faults(source, entry, f"defaults[{i}]", folder, replaced)
    return faults


def missing_file(folder: Path, group: str, name: str, place: str = "") -> list[Fault]:
    """The fault of a group's file that is not there, if it is not."""
    options = sorted(found.stem for found in (folder / group.strip("/")).glob("*.yaml"))
    if name.removesuffix(".yaml") in options:
        return []
    near = nearest(name, options, 1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    fix = f"{hint}in {shown(folder / group.strip('/'))}: {', '.join(options) or 'no .yaml file at all'}"
    return [Fault(f"no file '{group}/{name}.yaml'", place or f"command line: {group}", fix)]


def _default_faults(source: Source, entry: Any, path: str, folder: Path, replaced: Collection[str]) -> list[Fault]:
    """The faults of one entry of a defaults list; unusual ones are left to hydra."""
    faults = []
    for group, name in entry.items() if isinstance(entry, dict) else ():
        place = source.place(f"defaults: {group}", source.lines.get(f"{path}.{group}", source.lines["defaults"]))
        here = folder if str(group).startswith("/") else source.path.parent
        if str(group).split()[-1].lstrip("/").startswith("hydra/"):
            fix = "delete this entry of the defaults list"
            faults.append(Fault(f"hydra's setting '{group}' is refused", place, fix))
        elif _PLAIN_GROUP.fullmatch(str(group)) and isinstance(name, str) and _PLAIN_NAME.fullmatch(name):
            faults += [] if group in replaced else missing_file(here, str(group), name, place)
    return faults
