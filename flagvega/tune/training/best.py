"""The best configuration as one YAML that needs no other file but its plan."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from flagvega.config.spec import Spec
from flagvega.tune.candidates import Settings


def best_yaml(spec: Spec, chosen: Spec, settings: Settings, plan: Path | None) -> str:
    """The experiment as composed, with the candidate's choices; the layout is in the plan, and nowhere else."""
    composed = dict(spec.composed)
    dropped = {name for name in spec.arguments if name not in chosen.arguments} if plan is not None else set()
    train = _without(composed.get("train", {}), dropped)
    experiment = {name: value for name, value in composed.get("experiment", {}).items() if name != "auto_tuner"}
    for name, value in settings:
        head, _, tail = name.partition(".")
        plain = list(value) if isinstance(value, tuple) else value
        if head == "env":
            experiment["envs"] = {**(experiment.get("envs") or {}), tail: str(plain)}
        elif head == "bridge":
            composed["bridge"] = {**(composed.get("bridge") or {}), tail: plain}
        else:
            train = _without(train, {name})
            train["system"] = {**(train.get("system") or {}), name: plain}
    composed |= {"experiment": experiment, "train": train, "action": "run"}
    if plan is not None:
        composed["plan"] = str(plan)
    text = yaml.safe_dump(composed, sort_keys=False, allow_unicode=True)
    return f"# The best of action=auto_tune: python run.py --config-path {plan.parent if plan else '.'} \\\n" \
           f"#   --config-name experiment\n{text}"  # fmt: skip


def _without(node: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in node.items():
        if str(key).replace("-", "_") in names and not isinstance(value, Mapping):
            continue
        found[key] = _without(value, names) if isinstance(value, Mapping) else value
    return found
