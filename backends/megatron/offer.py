"""What the engine offers a planner: the work of a step, and which keys of the YAML leave the layout open."""

from __future__ import annotations

from dataclasses import replace
from math import gcd
from typing import Any

from backends.megatron.arguments import complete
from backends.megatron.recompute import read_recompute
from backends.megatron.request import read_request
from backends.megatron.shape import shape_from_arguments
from flagvega.config.spec import Spec
from flagvega.errors import ConfigError, Fault
from flagvega.layout.plan import Plan
from flagvega.model.workload import Choices, Kernels, Offer, Workload

_GIVEN_BY_HAND = (
    "hetero_process_meshes",
    "hetero_pipeline_layer_split",
    "pipeline_model_parallel_layout",
    "decoder_first_pipeline_num_layers",
    "decoder_last_pipeline_num_layers",
    "recompute_granularity_per_stage_micro_batch",
    "recompute_method_per_stage_micro_batch",
    "recompute_num_layers_per_stage_micro_batch",
)
"""A layout by hand beside `plan: auto` would be two answers to one question."""
_PINS = {
    "tensor_model_parallel_size": "tp",
    "context_parallel_size": "cp",
    "expert_model_parallel_size": "ep",
    "expert_tensor_parallel_size": "etp",
}

_VIRTUAL = ("num_layers_per_virtual_pipeline_stage", "num_virtual_stages_per_pipeline_rank")

_LAYOUT = (
    *_GIVEN_BY_HAND,
    *_PINS,
    *_VIRTUAL,
    "enable_hetero",
    "hetero_device_types",
    "hetero_sequence_parallel",
    "expert_tensor_parallel_size_per_process_mesh",
    "pipeline_model_parallel_size",
    "sequence_parallel",
    "micro_batch_size",
    "use_distributed_optimizer",
    "recompute_granularity",
    "recompute_activations",
    "recompute_method",
    "recompute_num_layers",
)
"""All that a plan says, and the rank program reads nowhere else."""


def free(spec: Spec) -> Spec:
    """The spec without a word about its layout: it goes with any plan."""
    arguments = {name: value for name, value in spec.arguments.items() if name not in _LAYOUT}
    bridge = {name: value for name, value in spec.blocks.get("bridge", {}).items() if name != "slow_boundaries"}
    return replace(spec, arguments=arguments, blocks={**spec.blocks, "bridge": bridge})


def read_offer(spec: Spec) -> Offer:
    """The work and the freedom; ConfigError when the YAML gives a layout that leaves none."""
    slow = spec.blocks.get("bridge", {}).get("slow_boundaries")
    faults = [
        Fault(f"'{name}' gives by hand what `plan: auto` chooses", spec.where.get(name, name), "remove one of the two")
        for name in _GIVEN_BY_HAND
        if spec.arguments.get(name) is not None
    ]
    if all(spec.arguments.get(name) is not None for name in _VIRTUAL):
        what = f"{' and '.join(_VIRTUAL)} say the same thing"
        faults.append(Fault(what, spec.where.get(_VIRTUAL[0], ""), "keep one of them"))
    if slow:
        where = spec.where.get("bridge.slow_boundaries", "bridge.slow_boundaries")
        faults.append(Fault("`plan: auto` chooses the slow boundaries", where, "remove it, or write [] for none"))
    if faults:
        raise ConfigError(faults)
    open_spec = settle(spec, None)
    settings = complete(open_spec.arguments)
    given = {name: value for name, value in spec.arguments.items() if value is not None}
    layout = read_request(replace(open_spec, arguments={**open_spec.arguments, "enable_hetero": False}))
    pins: dict[str, Any] = {field: (given[name],) for name, field in _PINS.items() if name in given}
    choices = Choices(
        **pins,
        sp=(bool(given["sequence_parallel"]),) if "sequence_parallel" in given else (True, False),
        micro_batch_size=given.get("micro_batch_size"),
        num_stages=given.get("pipeline_model_parallel_size"),
        recompute=_recompute(spec, settings),
        distributed_optimizer=given.get("use_distributed_optimizer", settings["optimizer"] == "adam"),
        slow_boundaries=slow is None,
        virtual_stages=given.get("num_virtual_stages_per_pipeline_rank"),
        layers_per_chunk=given.get("num_layers_per_virtual_pipeline_stage"),
        can_interleave=True,
    )
    return Offer(read_workload(open_spec), choices, layout, dict(spec.where))


def settle(spec: Spec, plan: Plan | None) -> Spec:
    """The spec with what `plan: auto` may leave out; before there is a plan, with the least that can be."""
    arguments = dict(spec.arguments)
    if arguments.get("micro_batch_size") is None:
        arguments["micro_batch_size"] = plan.stages[0].replicas[0].micro_batch_size if plan else 1
    if plan is None and spec.blocks.get("plan", {}).get("file") == "auto":
        arguments = {name: value for name, value in arguments.items() if name not in _VIRTUAL}
    elif plan is not None and any(arguments.get(name) is not None for name in _VIRTUAL):
        arguments.setdefault("pipeline_model_parallel_size", len(plan.stages))
    return replace(spec, arguments=arguments)


def _recompute(spec: Spec, settings: dict[str, Any]) -> Any:
    """What is pinned: a granularity, where one is given; else the planner recomputes where it must."""
    names = ("recompute_granularity", "recompute_activations")
    if not any(spec.arguments.get(name) for name in names):
        return None
    return read_recompute(spec, settings, 1)[0]


def read_workload(spec: Spec) -> Workload:
    """The work of a step."""
    settings = complete(spec.arguments)
    dtype = next((name for name in ("bf16", "fp16") if settings[name]), "fp32")
    batch = settings["global_batch_size"]
    rampup = settings["rampup_batch_size"] or ()
    in_fp32 = dtype == "fp32" or settings["accumulate_allreduce_grads_in_fp32"]
    moments = 8 if settings["optimizer"] == "adam" else 4
    return Workload(
        shape=shape_from_arguments(spec.arguments),
        seq=settings["seq_length"],
        dtype=dtype,
        global_batch=batch,
        batch_unit=gcd(batch, *rampup[:2]),
        gradient_bytes=4 if in_fp32 else 2,
        optimizer_bytes=moments if dtype == "fp32" else moments + 4,
        overlap_reduction=settings["overlap_grad_reduce"],
        kernels=Kernels(repeats_attention=_repeats_attention(settings)),
    )


def _repeats_attention(settings: dict[str, Any]) -> bool:
    """Whether selective recompute is asked for, and of attention (which it is, where no module is named)."""
    granularity = settings["recompute_granularity"] or ("selective" if settings["recompute_activations"] else None)
    return granularity == "selective" and "core_attn" in (settings["recompute_modules"] or ["core_attn"])
