"""``inference``: a batch of prompts through an engine, in FlagScale's form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from flagvega.config.arguments import take_argument
from flagvega.config.fields import read
from flagvega.config.keys import Key
from flagvega.config.report import Report
from flagvega.config.serving import DEFAULT_ENGINE, read_services
from flagvega.config.spec import Service
from flagvega.config.values import describe

SERVICE: Final = "llm"
"""What the model is called, and the part of ``inference`` that describes it."""

SAMPLING: Final[Mapping[str, Key]] = {
    key.name: key
    for key in (
        Key("n", "int"),
        Key("max_tokens", "int"),
        Key("min_tokens", "int"),
        Key("temperature", "float"),
        Key("top_p", "float"),
        Key("top_k", "int"),
        Key("min_p", "float"),
        Key("seed", "int"),
        Key("stop", "str_list"),
        Key("stop_token_ids", "int_list"),
        Key("include_stop_str_in_output", "bool"),
        Key("ignore_eos", "bool"),
        Key("presence_penalty", "float"),
        Key("frequency_penalty", "float"),
        Key("repetition_penalty", "float"),
        Key("logprobs", "int"),
        Key("logit_bias", "any"),
        Key("allowed_token_ids", "int_list"),
        Key("skip_special_tokens", "bool"),
        Key("spaces_between_special_tokens", "bool"),
        Key("truncate_prompt_tokens", "int"),
    )
}
"""What `generate.sampling` may say: names that vLLM's SamplingParams and its completions share."""


@dataclass(frozen=True)
class Generate:
    """``inference.generate``."""

    prompts: Any
    """A list of texts, or a file: a prompt a line, or JSON lines (texts, or objects with `prompt`)."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """How tokens are drawn, by vLLM's names."""


@dataclass(frozen=True)
class InferenceBlock:
    """``inference``."""

    llm: Mapping[str, Any]
    """Arguments of the engine, by the engine's own names."""
    generate: Generate


def read_inference(
    value: Any, engine: str | None, keys_of: Callable[[str], Mapping[str, Key]], report: Report
) -> tuple[tuple[Service, ...], dict[str, str], dict[str, Any]]:
    """The service, the path of each of its arguments, and ``prompts`` and ``sampling``; faults go to ``report``."""
    if value is None:
        fix = "write: inference: {llm: {model: <folder>}, generate: {prompts: [...]}}"
        report.fault("inference", "'inference' is missing", fix)
        return (), {}, {}
    block = read(InferenceBlock, value, "inference", report)
    if block is None:
        return (), {}, {}
    entry = {"serve_id": SERVICE, "engine": engine or DEFAULT_ENGINE, "engine_args": block.llm}
    inner = Report({}, report.homes, report.variables)
    services, paths = read_services([entry], keys_of, inner)
    there = "inference.llm"
    for fault in inner.faults:
        path = fault.where.replace("serve[0].engine_args", there).replace("serve[0].engine", "experiment.task.backend")
        report.fault(path, fault.what, fault.fix)
    places = {name: path.replace("serve[0].engine_args", there) for name, path in paths.items()}
    return services, places, {"prompts": _prompts(block.generate.prompts, report), "sampling": _sampling(block, report)}


def _prompts(value: Any, report: Report) -> Any:
    fits = isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))
    if not fits or not value:
        what = f"expected a list of texts or the name of a file, got {describe(value)}"
        report.fault("inference.generate.prompts", what)
    return value


def _sampling(block: InferenceBlock, report: Report) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in block.generate.sampling.items():
        path = f"inference.generate.sampling.{name}"
        if name not in SAMPLING:
            report.unknown(path, SAMPLING, "in how tokens are drawn")
        elif value is not None:
            take_argument(SAMPLING[name], value, path, found, {}, report)
    return found
