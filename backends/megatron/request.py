"""The layout that engine arguments describe: Megatron-LM's keys for one mesh, FlagScale's for several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from backends.megatron import vocabulary
from backends.megatron.arguments import complete
from backends.megatron.pipeline import read_pipeline
from backends.megatron.recompute import read_recompute
from flagvega.config.spec import Spec
from flagvega.errors import ConfigError, Fault
from flagvega.layout.request import LayoutRequest, MeshRequest
from flagvega.platform import find_chip

_PER_MESH = ("tp", "cp", "ep", "dp", "pp")
_WHERE = {
    "meshes": ("hetero_process_meshes", "tensor_model_parallel_size", "pipeline_model_parallel_size"),
    "layer_split": (
        "hetero_pipeline_layer_split",
        "pipeline_model_parallel_layout",
        "decoder_first_pipeline_num_layers",
        "decoder_last_pipeline_num_layers",
        "num_layers",
    ),
    "micro_batch_size": ("micro_batch_size",),
    "recompute": ("recompute_granularity_per_stage_micro_batch", "recompute_granularity"),
}


def read_request(spec: Spec) -> LayoutRequest:
    """The layout that the arguments ask for; ConfigError with every reason why they do not make one."""
    settings = complete(spec.arguments)
    faults: list[Fault] = []
    meshes = _hetero_meshes(spec, settings, faults) if settings["enable_hetero"] else [_one_mesh(settings)]
    if not meshes:
        raise ConfigError(faults)
    num_stages = sum(mesh.pp for mesh in meshes)
    pipeline = _gather(faults, read_pipeline, spec, settings, num_stages)
    recompute = _gather(faults, read_recompute, spec, settings, num_stages)
    vocabulary = _gather(faults, padded_vocab_size, spec, settings)
    if faults or pipeline is None or recompute is None or vocabulary is None:
        raise ConfigError(faults)
    bridge = spec.blocks.get("bridge", {})
    slow = bridge.get("slow_boundaries")
    return LayoutRequest(
        meshes=_merged(meshes) if pipeline.virtual_stages > 1 else tuple(meshes),
        num_layers=settings["num_layers"],
        micro_batch_size=settings["micro_batch_size"],
        padded_vocab_size=vocabulary,
        layer_split=pipeline.split,
        virtual_stages=pipeline.virtual_stages,
        loss="token" if settings["calculate_per_token_loss"] else "mean",
        distributed_optimizer=settings["use_distributed_optimizer"],
        tied_embeddings=not settings["untie_embeddings_and_output_weights"],
        recompute=recompute,
        slow_boundaries=None if slow is None else tuple(slow),
        wire_dtype=bridge.get("wire_dtype"),
        chunk_bytes=bridge.get("chunk_bytes", 0),
        bridge_meshes=settings["hetero_use_cpu_communication"],
        where={name: place for name, arguments in _WHERE.items() if (place := _first_place(spec, arguments))},
    )


def padded_vocab_size(spec: Spec, settings: Mapping[str, Any]) -> int:
    """:func:`vocabulary.padded_vocab_size`, its faults at the places of the YAML."""
    try:
        return vocabulary.padded_vocab_size(settings)
    except ConfigError as error:
        raise ConfigError(located(spec, error.faults)) from error


def located(spec: Spec, faults: Iterable[Fault]) -> list[Fault]:
    """Faults of engine arguments, at the places of the YAML."""
    return [replace(fault, where=spec.where.get(fault.where, fault.where)) for fault in faults]


def _gather(faults: list[Fault], read: Any, *arguments: Any) -> Any:
    """What ``read`` finds, or None with its faults gathered."""
    try:
        return read(*arguments)
    except ConfigError as error:
        faults += error.faults
        return None


def _first_place(spec: Spec, arguments: Sequence[str]) -> str:
    return next((spec.where[name] for name in arguments if name in spec.where), "")


def _one_mesh(settings: Mapping[str, Any]) -> MeshRequest:
    tp = settings["tensor_model_parallel_size"]
    return MeshRequest(
        tp=tp,
        cp=settings["context_parallel_size"],
        ep=settings["expert_model_parallel_size"],
        pp=settings["pipeline_model_parallel_size"],
        etp=settings["expert_tensor_parallel_size"],
        sp=settings["sequence_parallel"] and tp > 1,
    )


def _hetero_meshes(spec: Spec, settings: Mapping[str, Any], faults: list[Fault]) -> list[MeshRequest]:
    """FlagScale's meshes; lists that do not fit each other are faults, and what can be read is returned."""
    numbers = settings["hetero_process_meshes"] or []
    where = spec.where.get("hetero_process_meshes", spec.where.get("enable_hetero", ""))
    if not numbers or len(numbers) % len(_PER_MESH) or min(numbers) < 1:
        what = f"hetero_process_meshes needs five numbers of at least 1 a mesh, found {len(numbers)}: {list(numbers)}"
        faults.append(Fault(what, where, "write [tp, cp, ep, dp, pp, tp, cp, ep, dp, pp, ...]"))
        return []
    count = len(numbers) // len(_PER_MESH)
    chips = _one_each(spec, settings, "hetero_device_types", count, faults)
    etps = _one_each(spec, settings, "expert_tensor_parallel_size_per_process_mesh", count, faults)
    sps = _one_each(spec, settings, "hetero_sequence_parallel", count, faults)
    meshes = []
    for i in range(count):
        degrees = dict(zip(_PER_MESH, numbers[i * len(_PER_MESH) :], strict=False))
        sp = settings["sequence_parallel"] if sps[i] is None else sps[i]
        etp = settings["expert_tensor_parallel_size"] if etps[i] is None else etps[i]
        chip = _chip_name(spec, chips[i], faults)
        meshes.append(MeshRequest(**degrees, etp=etp, sp=bool(sp) and degrees["tp"] > 1, chip=chip))
    _check_stages(spec, settings, sum(mesh.pp for mesh in meshes), faults)
    return meshes


def _one_each(spec: Spec, settings: Mapping[str, Any], name: str, count: int, faults: list[Fault]) -> Sequence[Any]:
    """A value for each mesh, or None for each."""
    values = settings[name]
    if values is None:
        return [None] * count
    if not isinstance(values, (list, tuple)) or len(values) != count:
        length = len(values) if isinstance(values, (list, tuple)) else 1
        what = f"{name} has {length} entries, but hetero_process_meshes has {count} meshes"
        faults.append(Fault(what, spec.where.get(name, ""), f"give {count} entries, one a mesh"))
        return [None] * count
    return values


def _chip_name(spec: Spec, name: str | None, faults: list[Fault]) -> str | None:
    if name is None:
        return None
    try:
        return find_chip(name).name
    except ConfigError as error:
        faults += [replace(fault, where=spec.where.get("hetero_device_types", "")) for fault in error.faults]
        return None


def _check_stages(spec: Spec, settings: Mapping[str, Any], num_stages: int, faults: list[Fault]) -> None:
    given = spec.arguments.get("pipeline_model_parallel_size")
    if given is not None and given != num_stages:
        what = f"pipeline_model_parallel_size {given} is not the sum of the meshes' pp, {num_stages}"
        faults.append(Fault(what, spec.where.get("pipeline_model_parallel_size", ""), f"write {num_stages}"))


def _merged(meshes: Sequence[MeshRequest]) -> tuple[MeshRequest, ...]:
    """Like meshes as one, since an interleaved schedule runs in one mesh."""
    if len({replace(mesh, pp=1) for mesh in meshes}) > 1:
        return tuple(meshes)
    return (replace(meshes[0], pp=sum(mesh.pp for mesh in meshes)),)
