"""FlagScale's form of instances that read prompts and others that write answers: ``experiment.runner.deploy``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from flagvega.config.report import Report
from flagvega.config.spec import Role, Service
from flagvega.config.values import describe

DEPLOY: Final = "experiment.runner.deploy"
NUMBERS: Final[Mapping[str, Role]] = {"prefill_num": "prefill", "decode_num": "decode"}
"""FlagScale's keys with numbers of instances, and their roles."""
ADDRESSES: Final = ("prefill_address", "decode_address")


def split_roles(
    services: tuple[Service, ...], paths: Mapping[str, str], deploy: Any, report: Report
) -> tuple[tuple[Service, ...], dict[str, str]]:
    """The services as ``deploy`` has them, and the path of each argument; faults go to ``report``.

    The one service becomes two, ``<name>-prefill`` and ``<name>-decode``, which clients know by one name.
    """
    if not isinstance(deploy, Mapping) or not deploy.get("prefill_decode_disaggregation"):
        return services, dict(paths)
    where = f"{DEPLOY}.prefill_decode_disaggregation"
    for name in ADDRESSES:
        if deploy.get(name) not in (None, "auto"):
            report.fault(f"{DEPLOY}.{name}", f"{name} is {deploy[name]}: all instances are on one host", "delete it")
    if deploy.get("prefill_decode_strategy"):
        report.warn(f"{DEPLOY}.prefill_decode_strategy", "ignored: instances are chosen by what they can do")
    numbers = {role: _number(deploy.get(key, 1), f"{DEPLOY}.{key}", report) for key, role in NUMBERS.items()}
    if len(services) != 1:
        fix = "write 'role: prefill' and 'role: decode' beside engine_args instead"
        report.fault(where, f"it says how one service is split, and there are {len(services)}", fix)
        return services, dict(paths)
    (service,) = services
    if service.role != "both" or service.num_replicas != 1:
        fix = f"delete {DEPLOY}, or the service's role and num_replicas"
        report.fault(where, f"service '{service.name}' says itself how many instances it has, or what they do", fix)
    arguments = {"served_model_name": [service.name], **service.arguments}
    found: list[Service] = []
    for role, number in numbers.items():
        name = f"{service.name}-{role}"
        found.append(replace(service, name=name, arguments=arguments, num_replicas=number, role=role))
    places = {key.removeprefix(f"{service.name}."): path for key, path in paths.items()}
    return tuple(found), {f"{each.name}.{key}": path for each in found for key, path in places.items()}


def _number(value: Any, path: str, report: Report) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    report.fault(path, f"expected a number of instances, got {describe(value)}", "legal: more than 0")
    return 1
