"""Composes the YAML files of an experiment, by hydra's rules, into one configuration.

Hydra only composes plain values: its command line, its callbacks and its logging are never reached. The experiment
YAML is scanned (:mod:`flagvega.config.source`) before hydra sees it, every other file before it becomes part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flagvega.config.command import Command, Override
from flagvega.config.files import file_faults, find_folder, find_name, missing_file
from flagvega.config.overrides import apply
from flagvega.config.source import Source, scan, shown, syntax_fault
from flagvega.errors import ConfigError, Fault


def compose_files(command: Command) -> tuple[DictConfig, dict[str, str]]:
    """The configuration with the command line's changes, references unresolved; and each key's place.

    :raises ConfigError: when a file is missing, is not YAML, or holds what is never read.
    """
    folder = find_folder(command.config_path)
    name = find_name(folder, command.config_name)
    groups = [each for each in command.overrides if _is_group(each, folder)]
    replaced = {each.key for each in groups}
    picked = [fault for each in groups if not each.remove for fault in missing_file(folder, each.key, each.value)]
    _refuse([*file_faults(scan(folder / f"{name}.yaml"), folder, replaced), *picked])
    words = [f"~{each.key}" if each.remove else f"{each.key}={each.value}" for each in groups]
    config, mounted = _compose(folder, name, words, replaced)
    places = {
        key: source.place(key, line)
        for prefix, source in mounted
        for key, line in ((_joined(prefix, key), line) for key, line in source.lines.items())
    }
    OmegaConf.set_struct(config, False)
    _refuse([fault for each in command.overrides if each not in groups for fault in apply(config, each, places)])
    return config, places


def _compose(
    folder: Path, name: str, words: Sequence[str], replaced: set[str]
) -> tuple[DictConfig, list[tuple[str, Source]]]:
    with initialize_config_dir(str(folder), version_base="1.3"):
        try:
            mounted = list(_mounted(folder, name, words))
            _refuse([fault for _, source in mounted for fault in file_faults(source, folder, replaced)])
            return compose(name, list(words)), mounted
        except yaml.YAMLError as error:
            path = (
                Path(error.problem_mark.name)
                if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark
                else folder
            )
            _refuse(file_faults(scan(path), folder, replaced))
            raise ConfigError(syntax_fault(error, path)) from error
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(Fault(str(error).splitlines()[0], shown(folder / f"{name}.yaml"))) from error


def _mounted(folder: Path, name: str, words: Sequence[str]) -> Iterator[tuple[str, Source]]:
    """(where it is mounted, file) of each file that hydra composes, in its order: later ones win."""
    loader = GlobalHydra.instance().config_loader()
    for each in loader.compute_defaults_list(name, list(words), RunMode.RUN).defaults:
        if each.config_path and not each.config_path.startswith("hydra/"):
            package = each.package or ""
            below = "" if package == "_global_" else package
            file = f"{each.config_path.removesuffix('.yaml')}.yaml"
            yield below, scan(folder / file, may_be_list=bool(below))


def _joined(prefix: str, key: str) -> str:
    """A key path below another; one into a list begins with its bracket."""
    return f"{prefix}.{key}" if prefix and not key.startswith("[") else f"{prefix}{key}"


def _is_group(override: Override, folder: Path) -> bool:
    """Whether an override picks a file (``train=llama3``) rather than setting a value."""
    return (folder / override.key.partition("@")[0]).is_dir() and not override.value.startswith("{")


def _refuse(faults: Sequence[Fault]) -> None:
    if faults:
        raise ConfigError(faults)
