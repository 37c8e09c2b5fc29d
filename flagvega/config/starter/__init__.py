"""A commented pair of YAML files to start from."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Final

from flagvega.config.source import shown
from flagvega.errors import ConfigError, Fault

_TEMPLATES: Final = {"{name}.yaml": "experiment.yaml", "train/{name}.yaml": "task.yaml"}


def write_starter(folder: Path, name: str) -> list[Path]:
    """Write ``<folder>/<name>.yaml`` and ``<folder>/train/<name>.yaml``; a file that is there is never touched.

    :raises ConfigError: when one of them is there, or the name cannot name a file.
    """
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ConfigError(
            Fault(f"'{name}' cannot name a file", "command line: --config-name", "letters, digits, _ - .")
        )
    paths = {folder / target.format(name=name): template for target, template in _TEMPLATES.items()}
    if there := [path for path in paths if path.exists()]:
        raise ConfigError([Fault("is there already", shown(path), "choose another --config-name") for path in there])
    for path, template in paths.items():
        text = files("flagvega.config.starter").joinpath(template).read_text(encoding="utf-8")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text.replace("{name}", name).replace("{folder}", shown(folder.resolve())))
    return list(paths)
