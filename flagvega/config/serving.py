"""``serve``: a list of services, each a model behind an engine, in FlagScale's form."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from flagvega.config.arguments import take_argument
from flagvega.config.fields import key_names, read
from flagvega.config.keys import Key
from flagvega.config.report import Report
from flagvega.config.spec import Role, Service
from flagvega.config.values import describe
from flagvega.errors import ConfigError

DEFAULT_ENGINE: Final = "vllm"
OTHER_ENGINES: Final = ("vllm", "sglang", "llama_cpp")
"""Engines for which a FlagScale YAML may hold arguments in ``engine_args_specific``; only the entry's own are read."""

_COUNTS: Final = re.compile(r"\s*\w+=\d+(\s*,\s*\w+=\d+)*\s*")
_OWN_CODE: Final = ("module", "name", "depends")
"""What FlagScale's entries name instead of an engine when they are Python modules of the user."""


@dataclass(frozen=True)
class Resources:
    """``resources`` of an entry."""

    num_replicas: int = field(default=1, metadata={"minimum": 1})
    """Instances of the model, alike."""
    num_gpus: int | None = field(default=None, metadata={"minimum": 0})
    """FlagScale's: devices of an instance. They follow from its tensor and pipeline parallelism, which must agree."""
    num_cpus: int | None = field(default=None, metadata={"minimum": 0})
    """FlagScale's; an instance on CPUs gets its share of the host's cores."""
    min_replicas: int | None = field(default=None, metadata={"minimum": 0})
    """FlagScale's least number when it scales by load: read, and not used. There are always `num_replicas`."""
    max_replicas: int | None = field(default=None, metadata={"minimum": 1})
    """FlagScale's largest number when it scales by load: read, and not used."""


@dataclass(frozen=True)
class Capacity:
    """``capacity`` of an entry: what one of its instances can do, where that is known."""

    prefill_tokens_per_s: float | None = field(default=None, metadata={"minimum": 1})
    """Tokens of prompts that it reads in a second."""
    decode_tokens_per_s: float | None = field(default=None, metadata={"minimum": 1})
    """Tokens that all of its slots (`max_num_seqs`) give together in a second."""
    step_s: float | None = None
    """Time per token of a request that is alone."""


@dataclass(frozen=True)
class Benchmark:
    """``profile`` of an entry: FlagScale's benchmark, all of whose prompts are sent at once."""

    prefix_len: int = field(default=0, metadata={"minimum": 0})
    """Tokens with which each prompt begins, before its own. They only count: no two prompts begin alike here."""
    input_len: int = field(default=1024, metadata={"minimum": 1})
    """Tokens of a prompt of its own, at most."""
    output_len: int = field(default=1024, metadata={"minimum": 1})
    """Tokens of an answer, at most."""
    num_prompts: int = field(default=200, metadata={"minimum": 1})
    """Requests."""
    range_ratio: float = 0.5
    """Shortest lengths, as a share of the longest; all between are as likely."""

    @property
    def traffic(self) -> dict[str, Any]:
        """The same as our `traffic` has it."""
        ends = {"input_tokens": (self.prefix_len, self.input_len), "output_tokens": (0, self.output_len)}
        lengths = {
            name: {"from": before + max(1, int(most * self.range_ratio)), "to": before + most}
            for name, (before, most) in ends.items()
        }
        return {"concurrency": self.num_prompts, "num_requests": self.num_prompts, **lengths}


@dataclass(frozen=True)
class ServeEntry:
    """One entry of ``serve``."""

    serve_id: str
    """Name of the service; also what clients call the model, unless `served_model_name` says otherwise."""
    engine: str = DEFAULT_ENGINE
    """The engine that serves it."""
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the engine, by the engine's own names."""
    engine_args_specific: Mapping[str, Any] = field(default_factory=dict)
    """By engine: arguments that come on top; those of other engines are left aside."""
    resources: Resources = field(default_factory=Resources)
    profile: Benchmark | None = None
    """FlagScale's benchmark: what clients ask where there is no [`traffic`](#traffic)."""
    chip: str | None = None
    """Kind of chip that it runs on; without it, the first that is free."""
    role: Role = "both"
    """What its instances do of a request: `prefill` reads the prompt, `decode` writes the answer."""
    capacity: Capacity = field(default_factory=Capacity)
    """What the gateway begins with; without it, with what `action=profile` measured, or a guess. It keeps learning."""


def read_services(
    value: Any, keys_of: Callable[[str], Mapping[str, Key]], report: Report
) -> tuple[tuple[Service, ...], dict[str, str]]:
    """The services of ``serve``, and the path of each argument (``<serve_id>.<argument>``); faults go to ``report``."""
    if not isinstance(value, list) or not value:
        what = "'serve' is missing" if value is None else f"expected a list of services, got {describe(value)}"
        report.fault("serve", what, "write: serve: [{serve_id: my-model, engine_args: {model: <folder>}}]")
        return (), {}
    found: list[Service] = []
    paths: dict[str, str] = {}
    for i, item in enumerate(value):
        path = f"serve[{i}]"
        if _is_code(item, path, report):
            continue
        entry = read(ServeEntry, _with_number(item, path, report), path, report)
        if entry is None:
            continue
        service, where = _service(entry, path, keys_of, report)
        if any(other.name == service.name for other in found):
            report.fault(f"{path}.serve_id", f"'{service.name}' is the name of two services", "name each one once")
        found.append(service)
        paths |= {f"{service.name}.{name}": place for name, place in where.items()}
    return tuple(found), paths


def _is_code(item: Any, path: str, report: Report) -> bool:
    given = [name for name in _OWN_CODE if isinstance(item, Mapping) and name in item]
    if given:
        what = f"'{given[0]}' is refused: a service is a model behind an engine, not a Python module"
        report.fault(f"{path}.{given[0]}", what, f"keys of a service: {', '.join(key_names(ServeEntry))}")
    return bool(given)


def _with_number(item: Any, path: str, report: Report) -> Any:
    """An entry whose ``num_replicas: auto`` is a number."""
    resources = item.get("resources") if isinstance(item, Mapping) else None
    if not isinstance(resources, Mapping) or resources.get("num_replicas") != "auto":
        return item
    report.warn(f"{path}.resources.num_replicas", "auto is one instance: none is added when the load grows")
    return {**item, "resources": {**resources, "num_replicas": 1}}


def _plain(name: str, value: Any, keys: Mapping[str, Key]) -> tuple[str, Any]:
    """An argument in a form that command lines have, or had.

    ``no_x: true`` is ``x: false``; ``x.y: 1`` and ``x: y=1`` are ``x: {y: 1}``.
    """
    positive, (group, _, inner) = name.removeprefix("no_"), name.partition(".")
    if name not in keys and isinstance(value, bool) and positive in keys and keys[positive].type == "bool":
        return positive, not value
    if inner and group in keys and keys[group].type == "any":
        for part in reversed(inner.split(".")):
            value = {part: value}
        return group, value
    if name in keys and keys[name].type == "any" and isinstance(value, str) and _COUNTS.fullmatch(value):
        pairs = (pair.split("=") for pair in value.split(","))
        return name, {key.strip(): int(number) for key, number in pairs}
    return name, value


def _service(
    entry: ServeEntry, path: str, keys_of: Callable[[str], Mapping[str, Key]], report: Report
) -> tuple[Service, dict[str, str]]:
    arguments: dict[str, Any] = {}
    where: dict[str, str] = {}
    try:
        keys = keys_of(entry.engine)
    except ConfigError as error:
        for fault in error.faults:
            as_well = "; FlagScale's engine_args have vLLM's names" if entry.engine in OTHER_ENGINES else ""
            report.fault(f"{path}.engine", fault.what, fault.fix + as_well)
        keys = {}
    specific = entry.engine_args_specific
    for name in specific:
        if name not in OTHER_ENGINES:
            report.unknown(f"{path}.engine_args_specific.{name}", OTHER_ENGINES, "as the name of an engine")
    groups = {f"{path}.engine_args": entry.engine_args}
    if isinstance(own := specific.get(entry.engine), Mapping):
        groups[f"{path}.engine_args_specific.{entry.engine}"] = own
    for prefix, values in groups.items() if keys else ():
        for key, value in values.items():
            name, value = _plain(str(key).replace("-", "_"), value, keys)
            if name not in keys:
                report.unknown(f"{prefix}.{key}", keys, f"among the arguments of {entry.engine}")
            elif value is not None:
                take_argument(keys[name], value, f"{prefix}.{key}", arguments, where, report)
    number = entry.resources.num_replicas
    capacity = {name: value for name, value in asdict(entry.capacity).items() if value is not None}
    traffic = entry.profile.traffic if entry.profile else {}
    if entry.profile and not 0 <= entry.profile.range_ratio <= 1:
        report.fault(f"{path}.profile.range_ratio", f"{entry.profile.range_ratio:g} is no share", "from 0 to 1")
    service = Service(entry.serve_id, entry.engine, arguments, number, entry.chip, entry.role, capacity, traffic)
    devices, asked = service.num_devices, entry.resources.num_gpus
    if asked and keys and asked != devices:
        what = f"num_gpus is {asked}, but tensor_parallel_size x pipeline_parallel_size is {devices}"
        report.fault(f"{path}.resources.num_gpus", what, "delete it, or make them agree")
    return service, where
