"""The draft: a configuration composed and resolved, before its keys are judged."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flagvega.config.blocks import Experiment
from flagvega.config.experiment import TOP_LEVEL
from flagvega.config.fields import paths
from flagvega.config.nearest import nearest
from flagvega.config.redact import redact
from flagvega.config.report import Report
from flagvega.config.spec import Task
from flagvega.errors import Fault

_PLACEHOLDER: Final = re.compile(r"<?([xX]{3,}|\?{2,})>?|\$\{[^{}]*\?\?+\}|\$\{\w+:\s*\}")
_REFERENCE: Final = re.compile(r"\$\{([^{}]*)\}")
_ABSENT: Final = re.compile("Interpolation key '([^']+)' not found")
_KEY_REFERENCE: Final = re.compile(r"\$\{\s*([\w-]+(?:\.[\w-]+)*)\s*\}")
_ENV: Final = re.compile(r"\$\{\s*(?:oc\.)?env:\s*([^},\s]+)\s*\}")
_SHELL_NAME: Final = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class Draft:
    """A composed configuration: every value as the user means it, nothing checked but the values themselves."""

    values: Mapping[str, Any]
    """Plain data, references resolved; values that cannot be are left out and stand in ``faults``."""
    composed: Mapping[str, Any]
    """The same with references unresolved and secrets redacted: what may be written to a file."""
    places: Mapping[str, str]
    """Key path -> ``file:line key.path`` or ``command line: key``."""
    variables: frozenset[str] = frozenset()
    """Key paths that other keys refer to."""
    faults: tuple[Fault, ...] = ()
    warnings: tuple[str, ...] = ()
    folder: Path = Path()
    """Where the experiment's YAML is."""

    @property
    def action(self) -> str | None:
        """The action that the YAML names."""
        action = self.values.get("action")
        return None if action is None else str(action)

    @property
    def backend(self) -> str:
        """The engine that the task asks for."""
        return self.given_backend or Task.backend

    @property
    def given_backend(self) -> str | None:
        """The engine that the YAML names."""
        backend = self._task().get("backend")
        return None if backend is None else str(backend)

    @property
    def serves(self) -> bool:
        """Whether the task needs engines that serve, for clients or for a batch."""
        return self._task().get("type") in ("serve", "inference")

    @property
    def infers(self) -> bool:
        """Whether the task is a batch of prompts."""
        return self._task().get("type") == "inference"

    def _task(self) -> Mapping[str, Any]:
        experiment = self.values.get("experiment")
        task = experiment.get("task") if isinstance(experiment, Mapping) else None
        return task if isinstance(task, Mapping) else {}


def make_draft(config: DictConfig, report: Report) -> Draft:
    """Resolve the references of a composed configuration; each that cannot be is a fault of the draft."""
    if not OmegaConf.has_resolver("env"):
        OmegaConf.register_new_resolver("env", _environment)
    raw = OmegaConf.to_container(config, resolve=False)
    values = _resolve(config, raw, "", report)
    composed = redact(raw) if isinstance(raw, dict) else {}
    return Draft(values, composed, report.places, _references(raw), tuple(report.faults), tuple(report.warnings))


def _references(raw: Any) -> frozenset[str]:
    """Every key path inside a ``${...}``."""
    if isinstance(raw, (dict, list)):
        items = raw.values() if isinstance(raw, dict) else raw
        return frozenset[str]().union(*(_references(item) for item in items))
    return frozenset(_KEY_REFERENCE.findall(raw)) if isinstance(raw, str) else frozenset()


def _environment(name: str, *default: str) -> str | None:
    """FlagScale's ``${env:NAME}``, and ``${env:NAME,default}``."""
    return os.environ[name] if name in os.environ or not default else default[0]


def _resolve(node: DictConfig | ListConfig, raw: Any, path: str, report: Report) -> Any:
    if isinstance(node, ListConfig):
        items = [_value(node, i, raw[i], f"{path}[{i}]", report) for i in range(len(raw))]
        return [item for found, item in items if found]
    result = {}
    for key, item in raw.items():
        found, value = _value(node, key, item, f"{path}.{key}" if path else str(key), report)
        if found:
            result[str(key)] = value
    return result


def _value(parent: DictConfig | ListConfig, key: Any, raw: Any, path: str, report: Report) -> tuple[bool, Any]:
    """(whether there is a value, the value)."""
    if isinstance(raw, str) and _PLACEHOLDER.fullmatch(raw.strip()):
        name = path.rpartition(".")[2]
        report.fault(path, f"'{raw}' is a placeholder", f"fill in: {name}: <your value>, or add {path}=<your value>")
        return False, None
    if isinstance(raw, (dict, list)):
        return True, _resolve(parent[key], raw, path, report)
    if not isinstance(raw, str) or "${" not in raw:
        return True, raw
    try:
        value = parent[key]
        if isinstance(value, (DictConfig, ListConfig)):
            value = OmegaConf.to_container(value, resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        report.fault(path, *_unresolved(raw, error, report.places))
        return False, None
    return True, value


def _unresolved(raw: str, error: Exception, keys: Collection[str]) -> tuple[str, str]:
    """What is wrong with a reference, and how to mend it; ``keys`` are those that there are."""
    missing = [name for name in _ENV.findall(raw) if name not in os.environ]
    if missing:
        return (
            f"environment variable '{missing[0]}' is not set",
            f"export {missing[0]}=..., or give a default: ${{oc.env:{missing[0]},default}}",
        )
    if isinstance(error, RecursionError) or "Recursive" in str(error):
        return f"'{raw}' refers to itself", "write the value"
    reason = str(error).splitlines()[0]
    names = [name for name in _REFERENCE.findall(raw) if _SHELL_NAME.fullmatch(name)]
    if names:
        return (
            f"'{raw}' refers to a key '{names[0]}', which is not there",
            f"the whole key path belongs inside ${{...}}; for a shell variable write ${names[0]}, "
            f"for one of the environment ${{oc.env:{names[0]}}}",
        )
    fix = "refer to a whole key path: ${experiment.exp_name}"
    if absent := _ABSENT.search(reason):
        is_ours = absent[1] in paths(Experiment, "experiment").values()
        near = nearest(absent[1], [key for key in keys if key.partition(".")[0] in TOP_LEVEL], 1)
        mended = "write it" if is_ours else f"did you mean ${{{near[0]}}}?" if near else fix
        return f"'{raw}' refers to a key '{absent[1]}', which is not there", mended
    return f"'{raw}' does not resolve: {reason}", fix
