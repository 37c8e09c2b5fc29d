"""What is wrong with services before anything starts: arguments, chips, files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backends.vllm.arguments import VLLM
from backends.vllm.host import INSTALL, find_python, versions
from flagvega.config.spec import Service, Spec
from flagvega.errors import Fault
from flagvega.layout.serving import Instance
from flagvega.platform import Refusal, Serving, find_chip, platforms
from flagvega.records import read_json

MANY = "many"


def check_services(spec: Spec) -> list[Fault]:
    """Faults of the services' arguments."""
    faults = []
    for i, service in enumerate(spec.services):
        if not service.arguments.get("model"):
            fix = "write engine_args: {model: <folder of a HuggingFace model>}"
            where = spec.where.get(f"serve[{i}]", "serve")
            faults.append(Fault(f"service '{service.name}' has no model", where, fix))
        for name in ("tensor_parallel_size", "pipeline_parallel_size", "port", "max_num_seqs"):
            value = service.arguments.get(name)
            if value is not None and value < 1:
                faults.append(Fault(f"'{name}' is {value}", where_of(spec, service, name), "legal: more than 0"))
        faults += _check_steps(spec, service)
    return faults


def _check_steps(spec: Spec, service: Service) -> list[Fault]:
    """What a step takes in must do for its sequences, and for a whole prompt where prompts are not cut."""
    given, name = service.arguments, "max_num_batched_tokens"
    needed = ["max_num_seqs", *(["max_model_len"] if given.get("enable_chunked_prefill") is False else [])]
    return [
        Fault(f"'{name}' is {given[name]}, and '{other}' {given[other]}", where_of(spec, service, name),
              f"vLLM takes {name} from {other} on")
        for other in needed
        if isinstance(given.get(name), int) and isinstance(given.get(other), int) and given[name] < given[other]
    ]  # fmt: skip


def check_files(spec: Spec, instances: Sequence[Instance]) -> list[Fault]:
    """Models that are not on this host (nothing is downloaded), or that its chips' vLLM does not compute."""
    faults = []
    for service in spec.services:
        model, where = Path(str(service.arguments["model"])).expanduser(), where_of(spec, service, "model")
        if not (model / "config.json").is_file():
            what = f"no model in {model}: a folder with config.json is wanted"
            fix = "models must be local; action=convert makes such a folder from a checkpoint"
            faults.append(Fault(what, where, fix))
            continue
        head_dim = _head_dim(read_json(model / "config.json"))
        for chip in dict.fromkeys(each.chip for each in instances if each.service == service.name):
            serving = find_serving(chip)
            if serving and serving.head_dims and head_dim and head_dim not in serving.head_dims:
                what = f"vLLM on {chip} does not compute attention heads of width {head_dim}, as {model} has"
                faults.append(Fault(what, where, f"it knows {', '.join(map(str, serving.head_dims))}"))
    return faults


def _head_dim(config: Mapping[str, Any]) -> int | None:
    """Width of an attention head; None where the model says it in another way."""
    if width := config.get("head_dim"):
        return int(width)
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    return hidden // heads if hidden and heads else None


def check_instances(spec: Spec, instances: Sequence[Instance]) -> list[Fault]:
    """What the chips cannot do, each thing once."""
    services = {service.name: service for service in spec.services}
    faults = []
    for instance in instances:
        service = services[instance.service]
        serving = find_serving(instance.chip)
        if serving is None:
            what = f"no vLLM is known for chip '{instance.chip}'"
            faults.append(Fault(what, where_of(spec, service, "model"), f"chips with one: {', '.join(_known())}"))
            continue
        for refusal in serving.refused:
            if all(_holds(service.arguments.get(name), wanted) for name, wanted in refusal.when.items()):
                faults.append(_refusal(spec, service, instance.chip, refusal))
    return list(dict.fromkeys(faults))


def warnings_of(spec: Spec, instances: Sequence[Instance]) -> list[str]:
    """What a user should know: what was never tried, and what is not as it was when it was tried."""
    found = []
    for chip in dict.fromkeys(instance.chip for instance in instances):
        serving = find_serving(chip)
        if serving is None:
            continue
        if not serving.tested:
            found.append(f"serving on {chip} ({serving.package} {serving.version}) is untested on hardware")
        here = versions(find_python(), [serving.package]).get(serving.package)
        if here is None:
            found.append(f"{serving.package}, which {chip} needs, is not installed: {INSTALL}")
        elif here != serving.version:
            found.append(f"{serving.package} {here} is installed; known is {serving.version}")
        if serving.version != VLLM:
            found.append(f"arguments were checked against vLLM {VLLM}; {chip} runs that of {serving.package}")
    for service in spec.services:
        if service.arguments.get("trust_remote_code"):
            where = where_of(spec, service, "trust_remote_code")
            found.append(f"{where}: Python in the model's folder will be run")
    return found


def find_serving(chip: str) -> Serving | None:
    """How a chip runs vLLM."""
    return platforms.get(find_chip(chip).vendor).serving("vllm")


def _known() -> list[str]:
    return [name for name in platforms.names() if platforms.get(name).serving("vllm")]


def _holds(value: Any, wanted: Any) -> bool:
    if wanted == MANY:
        return isinstance(value, int) and value > 1
    return value in wanted if isinstance(wanted, list) else value == wanted


def _refusal(spec: Spec, service: Service, chip: str, refusal: Refusal) -> Fault:
    given: Mapping[str, Any] = {name: service.arguments[name] for name in refusal.when}
    shown = " with ".join(f"{name}: {str(value).lower()}" for name, value in given.items())
    where = where_of(spec, service, next(iter(given)))
    return Fault(f"vLLM on {chip} refuses {shown}", where, f"its reason: {refusal.reason}")


def where_of(spec: Spec, service: Service, name: str) -> str:
    """Where an argument of a service is written."""
    return spec.where.get(f"{service.name}.{name}", f"serve: {service.name}")
