"""Reads everything but the engine's arguments: the experiment and our own top-level blocks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import yaml

from flagvega.config.blocks import BLOCKS, LATER, SHORTHANDS, Experiment
from flagvega.config.fields import paths, read
from flagvega.config.flagscale import check_entrypoint
from flagvega.config.redact import is_secret
from flagvega.config.report import Report
from flagvega.config.source import scan
from flagvega.config.values import describe
from flagvega.errors import ConfigError

TOP_LEVEL: Final = ("experiment", "train", "serve", "inference", "action", *BLOCKS, *LATER)
"""The keys at the root of the YAML."""

_ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def homes() -> dict[str, str]:
    """Key -> where it belongs, in words, for the keys of the experiment and of our own blocks."""
    found = paths(Experiment, "experiment")
    for name, block in BLOCKS.items():
        found |= {key: path for key, path in paths(block, name).items() if key not in found}
    words = {key: f"write it as {path}" for key, path in found.items()}
    return words | {name: f"'{name}' belongs at the root of the experiment YAML" for name in TOP_LEVEL}


def read_experiment_block(values: Mapping[str, Any], dropped: Mapping[str, Any], report: Report) -> Experiment | None:
    """``experiment``, with the faults of its values in ``report``."""
    if values.get("experiment") is None:
        report.fault("experiment", "'experiment' is missing", "write: experiment: {exp_name: <name>}")
        return None
    experiment = read(Experiment, values["experiment"], "experiment", report)
    if experiment is None:
        return None
    if not experiment.exp_name.strip():
        report.fault("experiment.exp_name", "the name of the experiment is empty")
    if experiment.task.entrypoint:
        check_entrypoint(experiment.task.entrypoint, "experiment.task.entrypoint", report)
    runner = experiment.runner
    if runner.node_rank is not None and runner.node_rank >= runner.nnodes:
        fix = f"nodes are numbered from 0 to nnodes - 1 = {runner.nnodes - 1}"
        report.fault("experiment.runner.node_rank", f"there is no node {runner.node_rank}", fix)
    prefix = "experiment.runner."
    options = {key.removeprefix(prefix): value for key, value in dropped.items() if key.startswith(prefix)}
    return replace(experiment, envs=_read_envs(experiment.envs, report), runner=replace(runner, options=options))


def exp_dir(experiment: Experiment) -> Path:
    """The folder of the run, absolute."""
    folder = experiment.exp_dir or f"outputs/{experiment.exp_name}"
    return Path.cwd() / Path(folder).expanduser()


def read_blocks(values: Mapping[str, Any], report: Report) -> dict[str, Mapping[str, Any]]:
    """Our own top-level blocks that were given, without what is None."""
    found = dict[str, Mapping[str, Any]]()
    for name, block in BLOCKS.items():
        value = values.get(name)
        if value is None:
            continue
        if name in SHORTHANDS and not isinstance(value, Mapping):
            value = {SHORTHANDS[name]: value}
        if name == "cluster" and value.get("file") is not None:
            value = _read_cluster_file(value, report)
        if (given := read(block, value, name, report)) is not None:
            found[name] = {key: item for key, item in asdict(given).items() if item is not None}
    for name in LATER.keys() & values.keys():
        if values[name]:
            report.fault(name, f"'{name}' cannot be set: {LATER[name]}", "delete it")
    return found


def _read_cluster_file(value: Mapping[str, Any], report: Report) -> Mapping[str, Any]:
    """The block with what its file says; faults inside the file have the file's lines."""
    path = Path(str(value["file"])).expanduser()
    if others := sorted(set(value) - {"file"}):
        report.fault(f"cluster.{others[0]}", "a cluster comes from a file or is written here", "remove one of the two")
        return {}
    if not path.is_file():
        fix = "action=env merge=a.json,b.json makes one; paths begin in the working directory"
        report.fault("cluster.file", f"there is no file {path}", fix)
        return {}
    try:
        source = scan(path)
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except ConfigError as error:
        report.faults += error.faults
        return {}
    inside = Report({f"cluster.{key}": source.place(key, line) for key, line in source.lines.items()})
    inside.faults += source.faults
    if not source.faults:
        read(BLOCKS["cluster"], content, "cluster", inside)
    report.faults += inside.faults
    report.included |= inside.places
    return {} if inside.faults else content


def check_top_level(values: Mapping[str, Any], report: Report) -> None:
    """Faults of keys that do not belong at the root."""
    for name in values:
        if name not in TOP_LEVEL:
            report.unknown(name, TOP_LEVEL, "at the root of the experiment YAML")


def _read_envs(envs: Mapping[str, Any], report: Report) -> dict[str, str]:
    """Environment variables as text."""
    found = {}
    for name, value in envs.items():
        path = f"experiment.envs.{name}"
        if not _ENV_NAME.fullmatch(name):
            report.fault(path, f"'{name}' cannot name an environment variable", "letters, digits and _")
        elif isinstance(value, (Mapping, list)):
            report.fault(path, f"expected text, got {describe(value)}", "put it in quotes")
        elif value is not None:
            found[name] = str(value)
            if isinstance(value, bool):
                report.warn(path, f"becomes {value}, as FlagScale exports it: put it in quotes to choose")
            if is_secret(name) and value != "":
                report.warn(path, f"looks like a secret: export {name} in your shell instead; ranks inherit it")
    return found
