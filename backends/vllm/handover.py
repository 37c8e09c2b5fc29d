"""How instances of vLLM hand the cache of a prompt from one to another: the connector that a chip's vLLM has for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from backends.vllm.check import find_serving, where_of
from backends.vllm.host import plugin_env
from flagvega.config.spec import Role, Service, Spec
from flagvega.errors import Fault
from flagvega.layout.serving import Instance

FIRST_SIDE_PORT: Final = 5600
ROLES: Final[Mapping[Role, str]] = {"prefill": "kv_producer", "decode": "kv_consumer", "both": "kv_both"}


@dataclass(frozen=True)
class Connector:
    """One of vLLM's, or ours."""

    settings: Mapping[str, Any]
    """Of ``--kv-transfer-config``."""
    alike: tuple[str, ...] = ("model",)
    """Arguments that the two sides must have alike."""
    is_ours: bool = False


CONNECTORS: Final[Mapping[str, Connector]] = {
    "files": Connector(
        {"kv_connector": "FileConnector", "kv_connector_module_path": "flagvega_handover.connector"},
        ("model", "dtype", "tensor_parallel_size", "pipeline_parallel_size", "block_size", "kv_cache_dtype"),
        is_ours=True,
    ),
    "nixl": Connector({"kv_connector": "NixlConnector"}, ("model", "dtype", "kv_cache_dtype")),
}
"""By the words of ``serve.yaml``."""


def served_names(service: Service) -> tuple[str, ...]:
    """What clients call a service's model."""
    given = service.arguments.get("served_model_name") or [service.name]
    return (given,) if isinstance(given, str) else tuple(given)


def partners(service: Service, services: Sequence[Service]) -> tuple[Service, ...]:
    """Services of the same model with which it shares requests, itself among them; none when nobody has a role."""
    same = tuple(each for each in services if set(served_names(each)) & set(served_names(service)))
    return same if any(each.role != "both" for each in same) else ()


def check_roles(spec: Spec) -> list[Fault]:
    """Roles that nobody completes, and services that cannot read each other's caches."""
    return [fault for service in spec.services for fault in _check_service(spec, service)]


def _check_service(spec: Spec, service: Service) -> Iterator[Fault]:
    same = partners(service, spec.services)
    if not same:
        return
    if "kv_transfer_config" in service.arguments:
        what = f"service '{service.name}' has a role, and its kv_transfer_config is then written for it"
        yield Fault(what, where_of(spec, service, "kv_transfer_config"), "delete one of them")
    for role, word in (("prefill", "writes answers after"), ("decode", "reads prompts for")):
        if service.role == role and all(each.role == role for each in same):
            names = ", ".join(served_names(service))
            fix = f"give another service, with the other role or none, the same served_model_name: {names}"
            yield Fault(f"no service {word} '{service.name}'", where_of(spec, service, "served_model_name"), fix)


def check_pairs(spec: Spec, instances: Sequence[Instance]) -> list[Fault]:
    """Instances whose chips cannot hand over to each other."""
    services = {service.name: service for service in spec.services}
    faults = []
    for instance in instances:
        service = services[instance.service]
        same = {each.name for each in partners(service, spec.services)}
        name = _name(instance)
        if same and name is None:
            what = f"no connector is known for vLLM on {instance.chip}: its instances cannot share requests by roles"
            faults.append(Fault(what, where_of(spec, service, "model"), "serve without roles there"))
        for other in instances:
            if name is None or other.service not in same or other.id <= instance.id:
                continue
            faults += _differences(spec, service, instance, services[other.service], other)
    return list(dict.fromkeys(faults))


def _differences(spec: Spec, service: Service, instance: Instance, their: Service, other: Instance) -> Iterator[Fault]:
    """Why two instances cannot hand over to each other."""
    name, others = _name(instance), _name(other)
    if name != others:
        what = f"{instance.chip} hands over by {name}, and {other.chip} by {others}: '{service.name}', '{their.name}'"
        yield Fault(what, where_of(spec, service, "model"), "give the roles to chips that have a connector in common")
        return
    assert name is not None
    for key in CONNECTORS[name].alike:
        values = [each.arguments.get(key) for each in (service, their)]
        if values[0] != values[1]:
            what = f"'{key}' is {values[0]} in '{service.name}' and {values[1]} in '{their.name}', which share requests"
            yield Fault(what, where_of(spec, service, key), "make them agree")


def _name(instance: Instance) -> str | None:
    serving = find_serving(instance.chip)
    return serving.connector if serving and serving.connector in CONNECTORS else None


def _connector(instance: Instance) -> Connector:
    name = _name(instance)
    assert name is not None, "checked before"
    return CONNECTORS[name]


def pair_arguments(instance: Instance, folder: Path) -> dict[str, Any]:
    """Arguments of vLLM that make an instance share requests; ``folder`` is for what passes between them."""
    connector = _connector(instance)
    settings = {**connector.settings, "kv_role": ROLES[instance.role], "kv_load_failure_policy": "recompute"}
    if connector.is_ours:
        settings["kv_connector_extra_config"] = {"folder": str(folder)}
    return {"kv_transfer_config": settings}


def pair_env(instance: Instance, env: Mapping[str, str]) -> dict[str, str]:
    """The environment of an instance that shares requests, made of what it has anyway."""
    if _connector(instance).is_ours:
        return plugin_env(env)
    where = instance.address or instance.host
    side = {"VLLM_NIXL_SIDE_CHANNEL_HOST": where, "VLLM_NIXL_SIDE_CHANNEL_PORT": FIRST_SIDE_PORT + instance.id}
    return {**env, **{name: str(value) for name, value in side.items()}}
