"""``experiment.runner.deploy``: where clients ask, and FlagScale's form of instances that take roles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from flagvega.config.blocks import Experiment
from flagvega.config.report import Report
from flagvega.config.spec import Deploy, Role, Service

PLACES: Final = ("experiment.runner.deploy", "experiment.deploy")


def find_deploy(experiment: Experiment) -> tuple[Deploy, str]:
    """What the experiment says, and its path."""
    given = zip((experiment.runner.deploy, experiment.deploy), PLACES, strict=True)
    return next(((deploy, path) for deploy, path in given if deploy is not None), (Deploy(), PLACES[0]))


def split_roles(
    services: tuple[Service, ...], paths: Mapping[str, str], experiment: Experiment, report: Report
) -> tuple[tuple[Service, ...], dict[str, str]]:
    """The services as ``deploy`` has them, and the path of each argument; faults go to ``report``.

    The one service becomes two, ``<name>-prefill`` and ``<name>-decode``, which clients know by one name.
    """
    deploy, prefix = find_deploy(experiment)
    if not deploy.prefill_decode_disaggregation:
        return services, dict(paths)
    where = f"{prefix}.prefill_decode_disaggregation"
    for name in ("prefill_address", "decode_address"):
        if getattr(deploy, name) not in (None, "auto"):
            what = f"{name} is {getattr(deploy, name)}: hosts come from the cluster"
            report.fault(f"{prefix}.{name}", what, "delete it")
    if deploy.prefill_decode_strategy:
        report.warn(f"{prefix}.prefill_decode_strategy", "ignored: instances are chosen by what they can do")
    if len(services) != 1:
        fix = "write 'role: prefill' and 'role: decode' beside engine_args instead"
        report.fault(where, f"it says how one service is split, and there are {len(services)}", fix)
        return services, dict(paths)
    (service,) = services
    if service.role != "both" or service.num_replicas != 1:
        fix = f"delete {prefix}, or the service's role and num_replicas"
        report.fault(where, f"service '{service.name}' says itself how many instances it has, or what they do", fix)
    arguments = {"served_model_name": [service.name], **service.arguments}
    numbers: dict[Role, int] = {"prefill": deploy.prefill_num, "decode": deploy.decode_num}
    found: list[Service] = []
    for role, number in numbers.items():
        name = f"{service.name}-{role}"
        found.append(replace(service, name=name, arguments=arguments, num_replicas=number, role=role))
    places = {key.removeprefix(f"{service.name}."): path for key, path in paths.items()}
    return tuple(found), {f"{each.name}.{key}": path for each in found for key, path in places.items()}


def put_port(
    services: tuple[Service, ...], blocks: dict[str, Mapping[str, Any]], experiment: Experiment, report: Report
) -> tuple[Service, ...]:
    """The services, with ``deploy.port`` where clients ask: in the ``gateway`` block, else at the one instance."""
    deploy, prefix = find_deploy(experiment)
    if experiment.deploy not in (None, deploy):
        report.fault(PLACES[1], f"it differs from {PLACES[0]}", "keep one of them")
    path = f"{prefix}.port"
    if deploy.port is None or not services:
        return services
    if "gateway" in blocks or sum(service.num_replicas for service in services) > 1:
        gateway = blocks.get("gateway", {})
        if "gateway.port" in report.places and gateway["port"] != deploy.port:
            report.fault("gateway.port", f"it is {gateway['port']}, and {path} {deploy.port}", "keep one of them")
        blocks["gateway"] = {**gateway, "port": deploy.port}
        return services
    (service,) = services
    if (given := service.arguments.get("port", deploy.port)) != deploy.port:
        report.warn(path, f"used in place of {given} in engine_args, as FlagScale does")
    return (replace(service, arguments={**service.arguments, "port": deploy.port}),)
