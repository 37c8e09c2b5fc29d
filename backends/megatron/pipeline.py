"""Layers per stage and virtual stages, from any of the ways in which arguments give them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flagvega.config.spec import Spec
from flagvega.errors import ConfigError, Fault
from flagvega.layout.build import even_split

_GROUP = re.compile(r"\(([^()]*)\)(?:\*(\d+))?")
_REPEAT = re.compile(r"([EtmL])\*(\d+)")


@dataclass(frozen=True)
class Pipeline:
    """How layers are dealt."""

    split: tuple[int, ...] | None
    """Layers per stage, or per virtual stage in model order; None: as even as can be."""
    virtual_stages: int = 1


def read_pipeline(spec: Spec, settings: Mapping[str, Any], num_stages: int) -> Pipeline:
    """The pipeline that the arguments describe; ConfigError when they contradict themselves."""
    ways = [
        name
        for name in (
            "hetero_pipeline_layer_split",
            "pipeline_model_parallel_layout",
            "decoder_first_pipeline_num_layers",
            "decoder_last_pipeline_num_layers",
        )
        if settings[name] is not None
    ]
    if len(ways) > 1 and not all(name.startswith("decoder_") for name in ways):
        what = f"{' and '.join(ways)} both say how layers are split"
        raise ConfigError(Fault(what, spec.where.get(ways[1], ""), f"keep {ways[0]} only"))
    if settings["pipeline_model_parallel_layout"] is not None:
        return _read_layout(spec, settings, num_stages)
    virtual = _virtual_stages(spec, settings, num_stages)
    if settings["hetero_pipeline_layer_split"] is not None:
        return Pipeline(tuple(settings["hetero_pipeline_layer_split"]), virtual)
    return Pipeline(_first_last(spec, settings, num_stages) if ways else None, virtual)


def expand_layout(text: str) -> list[str]:
    """The stages of a layout such as ``Et|(tt|)*2tL``, repeats written out."""
    text = re.sub(r"[\s,]", "", text)
    while _GROUP.search(text):
        text = _GROUP.sub(lambda match: match[1] * int(match[2] or 1), text)
    return _REPEAT.sub(lambda match: match[1] * int(match[2]), text).split("|")


def _read_layout(spec: Spec, settings: Mapping[str, Any], num_stages: int) -> Pipeline:
    text = settings["pipeline_model_parallel_layout"]
    where = spec.where.get("pipeline_model_parallel_layout", "")
    stages = expand_layout(text)
    whole = "".join(stages)
    example = "|".join(_example(settings["num_layers"], num_stages))
    if "m" in whole:
        raise ConfigError(Fault(f"'{text}' has a multi-token prediction layer (m), which is not supported", where))
    if not re.fullmatch(r"Et*L", whole) or not stages[0].startswith("E") or not stages[-1].endswith("L"):
        what = f"'{text}' is not one embedding (E), decoder layers (t) and one head (L) in this order"
        raise ConfigError(Fault(what, where, f"for example '{example}'"))
    if whole.count("t") != settings["num_layers"]:
        what = f"'{text}' has {whole.count('t')} decoder layers, but num_layers is {settings['num_layers']}"
        raise ConfigError(Fault(what, where, f"for example '{example}'"))
    if len(stages) % num_stages or len(stages) > num_stages == 1:
        what = f"'{text}' has {len(stages)} stages, but the pipeline has {num_stages}, or a multiple if it has several"
        raise ConfigError(Fault(what, where, f"for example '{example}'"))
    return Pipeline(tuple(stage.count("t") for stage in stages), len(stages) // num_stages)


def _example(num_layers: int, num_stages: int) -> list[str]:
    stages = ["t" * layers for layers in even_split(num_layers, num_stages)]
    stages[0] = f"E{stages[0]}"
    stages[-1] = f"{stages[-1]}L"
    return stages


def _virtual_stages(spec: Spec, settings: Mapping[str, Any], num_stages: int) -> int:
    per_chunk = settings["num_layers_per_virtual_pipeline_stage"]
    virtual = settings["num_virtual_stages_per_pipeline_rank"]
    name = "num_virtual_stages_per_pipeline_rank" if virtual else "num_layers_per_virtual_pipeline_stage"
    where = spec.where.get(name, "")
    if per_chunk and virtual:
        what = "num_layers_per_virtual_pipeline_stage and num_virtual_stages_per_pipeline_rank say the same thing"
        raise ConfigError(Fault(what, where, "keep one of them"))
    if per_chunk:
        virtual = _chunks(settings["num_layers"], num_stages, per_chunk, where)
    if (virtual or 1) > 1 and num_stages == 1:
        raise ConfigError(Fault(f"{name} needs a pipeline, but there is one stage", where, "remove it, or raise pp"))
    return virtual or 1


def _chunks(num_layers: int, num_stages: int, per_chunk: int, where: str) -> int:
    per_stage, rest = divmod(num_layers, num_stages)
    if rest or per_stage % per_chunk:
        what = f"num_layers {num_layers} is not pp {num_stages} x virtual stages x {per_chunk} layers"
        fits = [size for size in range(1, per_stage + 1) if not rest and per_stage % size == 0]
        nearest = min(fits, key=lambda size: abs(size - per_chunk), default=None)
        fix = (
            f"write {nearest}" if nearest else "write num_virtual_stages_per_pipeline_rank, which allows uneven stages"
        )
        raise ConfigError(Fault(what, where, fix))
    return per_stage // per_chunk


def _first_last(spec: Spec, settings: Mapping[str, Any], num_stages: int) -> tuple[int, ...]:
    first = settings["decoder_first_pipeline_num_layers"]
    last = settings["decoder_last_pipeline_num_layers"]
    rest = settings["num_layers"] - (first or 0) - (last or 0)
    others = num_stages - (first is not None) - (last is not None)
    if others < 0 or rest < 0 or (others == 0 and rest):
        layers = f"first {first} and last {last} of num_layers {settings['num_layers']}"
        what = f"{layers} leave {rest} layers for {others} stages"
        name = "decoder_first_pipeline_num_layers" if first is not None else "decoder_last_pipeline_num_layers"
        raise ConfigError(Fault(what, spec.where.get(name, ""), "write hetero_pipeline_layer_split or less of them"))
    middle = even_split(rest, others) if others else ()
    return (*(() if first is None else (first,)), *middle, *(() if last is None else (last,)))
