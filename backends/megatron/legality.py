"""What the engine can run of a plan, and what it would train silently wrong: reasons, each with a way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import lcm
from typing import Any

from backends.megatron.arguments import complete
from backends.megatron.numbers import divisors_of, nearest, nearest_multiple
from backends.megatron.request import padded_vocab_size
from flagvega.config.spec import Spec
from flagvega.errors import Fault
from flagvega.layout.plan import Boundary, Mesh, Plan
from flagvega.platform import find_chip, platforms

_KERNELS = {
    "use_flash_attn": "flash_attn",
    "transformer_impl": "transformer_engine",
    "use_te": "transformer_engine",
}
"""Keys that choose a kernel -> the feature that a chip's software must have for it."""


def mesh_faults(spec: Spec, mesh: Mesh) -> Iterator[tuple[str, str]]:
    """(reason, way out) for everything that keeps the mesh from running the spec's model."""
    settings = complete(spec.arguments)
    yield from _divisible(spec, settings, mesh)
    yield from _sequence(settings, mesh)
    yield from _experts(settings, mesh)
    if settings["moe_grouped_gemm"] and not _supports(mesh, "transformer_engine"):
        yield f"moe_grouped_gemm needs CUDA kernels, which {mesh.chip} lacks", "write moe_grouped_gemm: false"


def boundary_fault(spec: Spec, sender: Mesh, receiver: Mesh, boundary: Boundary) -> str | None:
    """Why the meshes cannot be neighbours, or None."""
    length = spec.arguments["seq_length"]
    for mesh in (sender, receiver):
        if length % (mesh.cp * mesh.tp):
            near = nearest_multiple(length, mesh.cp * mesh.tp)
            what = f"seq_length {length} cannot be shared over cp {mesh.cp} x tp {mesh.tp} at a boundary"
            return f"{what}; seq_length {near} would fit"
    if boundary.transport == "native" and sender.chip != receiver.chip:
        return f"{sender.chip} and {receiver.chip} have no collectives in common; write transport bridge"
    return None


def plan_faults(spec: Spec, plan: Plan) -> list[Fault]:
    """Every fault of a plan for a spec: its meshes, its batch, and where it disagrees with the arguments."""
    found = [
        Fault(f"mesh {mesh.id} ({mesh.chip}): {reason}" if len(plan.meshes) > 1 else reason, _degrees_at(spec), fix)
        for mesh in plan.meshes
        for reason, fix in mesh_faults(spec, mesh)
    ]
    for i, boundary in enumerate(plan.boundaries):
        sender, receiver = (plan.meshes[plan.stages[j].replicas[0].mesh] for j in (i, i + 1))
        if reason := boundary_fault(spec, sender, receiver, boundary):
            found.append(Fault(f"stages {i} and {i + 1}: {reason}", _degrees_at(spec)))
    settings = complete(spec.arguments)
    return found + [*_batch(spec, settings, plan), *_disagreements(spec, settings, plan)]


def kernel_warnings(spec: Spec, plan: Plan) -> list[str]:
    """Kernels that the YAML chooses and a chip's software lacks: plain torch stands in."""
    found = []
    for name, feature in _KERNELS.items():
        if spec.arguments.get(name) in (None, False, "local"):
            continue
        lacking = sorted({mesh.chip for mesh in plan.meshes if not _supports(mesh, feature)})
        if lacking:
            what = f"{name} is not there on {', '.join(lacking)}: plain torch stands in"
            found.append(f"{spec.where.get(name, name)}: {what}")
    return found


def _supports(mesh: Mesh, feature: str) -> bool:
    return platforms.get(find_chip(mesh.chip).vendor).supports(feature)


def _degrees_at(spec: Spec) -> str:
    names = ("hetero_process_meshes", "tensor_model_parallel_size", "expert_model_parallel_size", "plan")
    return next((spec.where[name] for name in names if name in spec.where), "plan")


def _divisible(spec: Spec, settings: Mapping[str, Any], mesh: Mesh) -> Iterator[tuple[str, str]]:
    """What tp and etp cut must be divisible by them."""
    cuts = [
        ("num_attention_heads", settings["num_attention_heads"], "tp", mesh.tp),
        ("num_query_groups", settings["num_query_groups"], "tp", mesh.tp),
        ("ffn_hidden_size", settings["ffn_hidden_size"], "tp", mesh.tp),
    ]
    if settings["num_experts"]:
        width = settings["moe_ffn_hidden_size"] or settings["ffn_hidden_size"]
        cuts += [
            ("moe_ffn_hidden_size", width, "etp", mesh.etp),
            ("num_experts", settings["num_experts"], "ep", mesh.ep),
        ]
    if settings["moe_shared_expert_intermediate_size"]:
        cuts.append(
            ("moe_shared_expert_intermediate_size", settings["moe_shared_expert_intermediate_size"], "tp", mesh.tp)
        )
    for name, value, degree_name, degree in cuts:
        if value % degree:
            fix = f"{degree_name} {nearest(divisors_of(value), degree)} would fit"
            yield f"{name} {value} is no multiple of {degree_name} {degree}", fix
    vocabulary = padded_vocab_size(spec, settings)
    if vocabulary % mesh.tp:
        multiple = lcm(settings["make_vocab_size_divisible_by"], mesh.tp)
        near = nearest(divisors_of(vocabulary), mesh.tp)
        fix = f"make_vocab_size_divisible_by {multiple} would fit, or tp {near}"
        yield f"the vocabulary, padded to {vocabulary}, is no multiple of tp {mesh.tp}", fix


def _sequence(settings: Mapping[str, Any], mesh: Mesh) -> Iterator[tuple[str, str]]:
    length = settings["seq_length"]
    parts = [
        (2 * mesh.cp, f"2 x cp {mesh.cp}", mesh.cp > 1),
        (mesh.cp * mesh.tp, f"cp {mesh.cp} x tp {mesh.tp}", mesh.sp),
    ]
    for part, words, applies in parts:
        if applies and length % part:
            yield (
                f"seq_length {length} is no multiple of {words}",
                f"seq_length {nearest_multiple(length, part)} would fit",
            )
    if mesh.cp > 1 and settings["attention_dropout"]:
        yield f"attention_dropout {settings['attention_dropout']} with cp {mesh.cp}", "write attention_dropout: 0"


def _experts(settings: Mapping[str, Any], mesh: Mesh) -> Iterator[tuple[str, str]]:
    if not settings["num_experts"]:
        if mesh.ep > 1:
            yield f"ep {mesh.ep} without experts", "give num_experts, or write ep 1"
        return
    if (mesh.tp * mesh.cp * mesh.dp) % (mesh.etp * mesh.ep):
        product = f"tp {mesh.tp} x cp {mesh.cp} x dp {mesh.dp} = {mesh.stage_size}"
        fits = [ep for ep in divisors_of(settings["num_experts"]) if mesh.stage_size % (mesh.etp * ep) == 0]
        fix = f"ep {nearest(fits, mesh.ep)} would fit" if fits else f"etp {mesh.tp} would fit"
        yield f"etp {mesh.etp} x ep {mesh.ep} does not divide {product}", fix
    if mesh.tp > 1 and not mesh.sp:
        yield f"experts with tp {mesh.tp} need sequence parallelism", "write sequence_parallel: true"
    if mesh.tp > 1 and mesh.ep == 1 and mesh.etp == 1:
        what = f"tp {mesh.tp} with etp 1 and ep 1: megatron-core does not reduce the experts' gradients, silently"
        yield what, f"write etp {mesh.tp} or ep 2"


def _batch(spec: Spec, settings: Mapping[str, Any], plan: Plan) -> Iterator[Fault]:
    samples = plan.batch.samples
    first = plan.meshes[0]
    product = f"micro_batch_size {plan.stages[0].replicas[0].micro_batch_size} x dp {first.dp} = {samples}"
    unit, words = samples, product
    if plan.schedule == "interleaved":
        unit, words = samples * len(plan.stages), f"{product} x pp {len(plan.stages)} (interleaved)"
    sizes = {"global_batch_size": settings["global_batch_size"]}
    rampup = settings["rampup_batch_size"] or ()
    named = [*sizes.items(), *(("rampup_batch_size", size) for size in rampup[:2])]
    for name, size in named:
        if size % unit:
            where = spec.where.get(name, name)
            yield Fault(f"{name} {size} is no multiple of {words}", where, f"{nearest_multiple(size, unit)} would fit")


def _disagreements(spec: Spec, settings: Mapping[str, Any], plan: Plan) -> Iterator[Fault]:
    """Arguments that say otherwise than a plan read from a file."""
    first = plan.meshes[0]
    num_chunks = len(plan.chain) // len(plan.stages)
    facts: list[tuple[str, Any, Callable[[], bool]]] = [
        ("num_layers", plan.num_layers, lambda: True),
        ("untie_embeddings_and_output_weights", not plan.tied_embeddings, lambda: True),
        ("micro_batch_size", plan.stages[0].replicas[0].micro_batch_size, lambda: True),
        ("calculate_per_token_loss", plan.batch.loss == "token", lambda: True),
        ("use_distributed_optimizer", plan.distributed_optimizer, lambda: True),
        ("pipeline_model_parallel_size", len(plan.stages), lambda: True),
        ("num_virtual_stages_per_pipeline_rank", num_chunks, lambda: True),
        ("num_layers_per_virtual_pipeline_stage", _layers_per_chunk(plan), lambda: True),
        ("tensor_model_parallel_size", first.tp, lambda: len(plan.meshes) == 1),
        ("context_parallel_size", first.cp, lambda: len(plan.meshes) == 1),
        ("expert_model_parallel_size", first.ep, lambda: len(plan.meshes) == 1),
        ("expert_tensor_parallel_size", first.etp, lambda: len(plan.meshes) == 1),
        ("sequence_parallel", first.sp, lambda: len(plan.meshes) == 1 and first.tp > 1),
        ("hetero_process_meshes", _process_meshes(plan), lambda: settings["enable_hetero"]),
        ("hetero_pipeline_layer_split", [chunk.num_layers for chunk in plan.chain], lambda: num_chunks == 1),
    ]
    for name, value, applies in facts:
        if name in spec.arguments and applies() and spec.arguments[name] != value:
            what = f"'{name}' is {spec.arguments[name]}, but the plan has {value}"
            yield Fault(what, spec.where.get(name, name), "remove it, or let them agree")
    vocabulary = padded_vocab_size(spec, settings)
    if plan.batch.padded_vocab_size != vocabulary:
        what = f"the plan's vocabulary is {plan.batch.padded_vocab_size}, but the padded vocabulary is {vocabulary}"
        yield Fault(what, "plan decisions.batch.padded_vocab_size", f"write {vocabulary}")


def _layers_per_chunk(plan: Plan) -> int | list[int]:
    """Of every chunk where all have as many."""
    layers = [chunk.num_layers for chunk in plan.chain]
    return layers[0] if len(set(layers)) == 1 else layers


def _process_meshes(plan: Plan) -> list[int]:
    return [n for mesh in plan.meshes for n in (mesh.tp, mesh.cp, mesh.ep, mesh.dp, mesh.num_stages)]
