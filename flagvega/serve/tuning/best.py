"""The best configuration as one YAML that needs no other file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from flagvega.config.spec import Service, Spec


def best_yaml(spec: Spec, chosen: Spec, folder: Path) -> str:
    """The experiment as composed, with the candidate's arguments, replicas and variables."""
    composed = dict(spec.composed)
    experiment = {name: value for name, value in composed.get("experiment", {}).items() if name != "auto_tuner"}
    if envs := {name: value for name, value in chosen.envs.items() if spec.envs.get(name) != value}:
        experiment["envs"] = {**(experiment.get("envs") or {}), **envs}
    services = {service.name: service for service in chosen.services}
    before = {service.name: service for service in spec.services}
    entries = [_entry(entry, before[entry["serve_id"]], services[entry["serve_id"]]) for entry in composed["serve"]]
    composed |= {"experiment": experiment, "serve": entries, "action": "run"}
    text = yaml.safe_dump(composed, sort_keys=False, allow_unicode=True)
    head = f"# The best of action=auto_tune: python run.py --config-path {folder} \\\n#   --config-name experiment\n"
    return head + text


def _entry(entry: Mapping[str, Any], before: Service, chosen: Service) -> dict[str, Any]:
    """An entry of ``serve`` with what differs."""
    changed = {name: value for name, value in chosen.arguments.items() if before.arguments.get(name) != value}
    specific = {**(entry.get("engine_args_specific") or {})}
    if isinstance(own := specific.get(chosen.engine), Mapping):
        specific[chosen.engine] = {name: value for name, value in own.items() if name.replace("-", "_") not in changed}
    kept = {k: v for k, v in (entry.get("engine_args") or {}).items() if k.replace("-", "_") not in changed}
    found = {**entry, "engine_args": {**kept, **changed}}
    if specific:
        found["engine_args_specific"] = specific
    if chosen.num_replicas != before.num_replicas or chosen.num_devices != before.num_devices:
        resources = {k: v for k, v in (entry.get("resources") or {}).items() if k != "num_gpus"}
        found["resources"] = {**resources, "num_replicas": chosen.num_replicas}
    return found
