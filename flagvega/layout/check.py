"""Whether a plan is consistent in itself. What an engine can run of it is the engine's to say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from flagvega.errors import Fault
from flagvega.layout.plan import Mesh, Plan, Recompute
from flagvega.layout.schedule import in_flight


def check_plan(plan: Plan) -> list[Fault]:
    """Every rule that the plan breaks, each at its path in ``plan.json``."""
    if not (plan.meshes and plan.stages and plan.chain):
        return [Fault("a plan has at least one mesh, one stage and one chunk", "plan decisions")]
    faults = [*_mesh_faults(plan), *_device_faults(plan)]
    faults = faults or [*_stage_faults(plan)]
    faults = faults or [*_chain_faults(plan), *_boundary_faults(plan)]
    return faults or [*_in_flight_faults(plan)]


def _mesh_faults(plan: Plan) -> Iterator[Fault]:
    for i, mesh in enumerate(plan.meshes):
        where = f"plan decisions.meshes[{i}]"
        if mesh.id != i:
            yield Fault(f"id {mesh.id} of the mesh at position {i}", where, f"write {i}")
        low = [name for name in ("tp", "cp", "ep", "dp", "etp") if getattr(mesh, name) < 1]
        for name in low:
            yield Fault(f"{name} is {getattr(mesh, name)}", f"{where}.{name}", "write at least 1")
        if low:
            continue
        if not mesh.devices or len(mesh.devices) % mesh.stage_size:
            what = f"{len(mesh.devices)} devices are no whole number of stages of {_product(mesh)}"
            yield Fault(what, f"{where}.devices")
        if (mesh.tp * mesh.cp * mesh.dp) % (mesh.etp * mesh.ep):
            what = f"etp {mesh.etp} x ep {mesh.ep} = {mesh.etp * mesh.ep} does not divide {_product(mesh)}"
            yield Fault(what, f"{where}.ep", "lower ep or etp")
        if mesh.sp and mesh.tp == 1:
            yield Fault("sequence parallelism needs tp of at least 2", f"{where}.sp", "write false")


def _product(mesh: Mesh) -> str:
    return f"tp {mesh.tp} x cp {mesh.cp} x dp {mesh.dp} = {mesh.stage_size}"


def _device_faults(plan: Plan) -> Iterator[Fault]:
    devices = [device for mesh in plan.meshes for device in mesh.devices]
    for (node, local), count in Counter(devices).items():
        if count > 1:
            yield Fault(f"device {local} of node {node} is used {count} times", "plan decisions.meshes")
        if node < 0 or local < 0:
            yield Fault(f"there is no device {local} of node {node}", "plan decisions.meshes")
    for node in {node for node, _ in devices}:
        used = {local for its, local in devices if its == node}
        if used != set(range(len(used))):
            what = f"node {node} uses devices {sorted(used)}, which are not numbered from 0 without gaps"
            yield Fault(what, "plan decisions.meshes")


def _stage_faults(plan: Plan) -> Iterator[Fault]:
    if plan.batch.samples < 1 or plan.batch.padded_vocab_size < 1:
        yield Fault("samples and padded_vocab_size are at least 1", "plan decisions.batch")
    order = [mesh.id for mesh in plan.meshes for _ in range(mesh.num_stages)]
    if len(order) != len(plan.stages):
        what = f"{len(plan.stages)} stages, but the meshes' devices hold {len(order)}"
        yield Fault(what, "plan decisions.stages")
        return
    for i, (stage, mesh) in enumerate(zip(plan.stages, order, strict=True)):
        where = f"plan decisions.stages[{i}]"
        if stage.id != i:
            yield Fault(f"id {stage.id} of the stage at position {i}", where, f"write {i}")
        replica = stage.replicas[0]
        if replica.mesh != mesh:
            what = f"stage {i} is on mesh {replica.mesh}, but by the meshes' order and sizes it is on mesh {mesh}"
            yield Fault(what, f"{where}.replicas[0].mesh", f"write {mesh}")
            continue
        if replica.dp != plan.meshes[mesh].dp:
            what = f"dp {replica.dp}, but its mesh has dp {plan.meshes[mesh].dp}"
            yield Fault(what, f"{where}.replicas[0].dp", f"write {plan.meshes[mesh].dp}")
        total = sum(replica.dp * replica.micro_batch_size for replica in stage.replicas)
        if total != plan.batch.samples:
            what = f"dp {replica.dp} x micro_batch_size {replica.micro_batch_size} = {total} samples"
            yield Fault(f"{what}, but the batch has {plan.batch.samples}", f"{where}.replicas[0]")
        yield from _recompute_faults(stage.recompute, where)


def _recompute_faults(recompute: tuple[Recompute, ...], where: str) -> Iterator[Fault]:
    ends = [part.until for part in recompute]
    if not ends or ends[-1] is not None or None in ends[:-1]:
        yield Fault("the last entry, and only it, has no end (until: null)", f"{where}.recompute")
    elif (bounds := [end for end in ends if end is not None]) != sorted({bound for bound in bounds if bound > 0}):
        yield Fault("ends are in ascending order", f"{where}.recompute")
    for j, part in enumerate(recompute):
        if part.granularity == "full" and (part.method is None or not part.num_layers):
            yield Fault("full recompute has a method and a number of layers", f"{where}.recompute[{j}]")


def _chain_faults(plan: Plan) -> Iterator[Fault]:
    virtual, rest = divmod(len(plan.chain), len(plan.stages))
    if rest or [chunk.stage for chunk in plan.chain] != list(range(len(plan.stages))) * virtual:
        what = f"the chain visits stages {[chunk.stage for chunk in plan.chain]}"
        yield Fault(what, "plan decisions.chain", f"visit 0 to {len(plan.stages) - 1} in order, once or several times")
    wanted = "interleaved" if virtual > 1 else "1f1b"
    if plan.schedule != wanted:
        what = f"{virtual} chunks a stage, but schedule {plan.schedule}"
        yield Fault(what, "plan decisions.schedule", f"write {wanted}")
    if virtual > 1 and len(plan.stages) == 1:
        yield Fault("an interleaved schedule needs at least two stages", "plan decisions.chain", "visit stage 0 once")
    if virtual > 1 and len(plan.meshes) > 1:
        yield Fault("an interleaved schedule runs in one mesh", "plan decisions.meshes", "visit every stage once")
    end = 0
    last = len(plan.chain) - 1
    for i, chunk in enumerate(plan.chain):
        where = f"plan decisions.chain[{i}]"
        if chunk.layers[0] != end or chunk.layers[1] < chunk.layers[0]:
            what = f"layers {list(chunk.layers)} do not follow layer {end}"
            yield Fault(what, f"{where}.layers", "ranges are half-open and follow one another")
        end = max(end, chunk.layers[1])
        if chunk.embedding != (i == 0):
            yield Fault("the first chunk, and only it, has the embedding", f"{where}.embedding")
        if chunk.head != (i == last):
            yield Fault("the last chunk, and only it, has the head", f"{where}.head")


def _boundary_faults(plan: Plan) -> Iterator[Fault]:
    if len(plan.boundaries) != len(plan.stages) - 1:
        what = f"{len(plan.boundaries)} boundaries between {len(plan.stages)} stages"
        yield Fault(what, "plan decisions.boundaries", f"give {len(plan.stages) - 1}")
        return
    for i, boundary in enumerate(plan.boundaries):
        where = f"plan decisions.boundaries[{i}]"
        sender, receiver = (plan.meshes[plan.stages[j].replicas[0].mesh] for j in (i, i + 1))
        if boundary.transport == "native" and sender.chip != receiver.chip:
            what = f"a native transport cannot join {sender.chip} and {receiver.chip}"
            yield Fault(what, f"{where}.transport", "write bridge")
        if boundary.chunk_bytes < 0:
            yield Fault(f"chunk_bytes is {boundary.chunk_bytes}", f"{where}.chunk_bytes", "write 0 or more")
        if boundary.wire_dtype not in (None, "fp32", "bf16", "fp16"):
            yield Fault(f"wire_dtype is {boundary.wire_dtype}", f"{where}.wire_dtype", "write fp32, bf16 or fp16")
        if boundary.slow and plan.schedule == "interleaved":
            yield Fault("an interleaved schedule has no slow boundaries", f"{where}.slow", "write false")


def _in_flight_faults(plan: Plan) -> Iterator[Fault]:
    virtual = len(plan.chain) // len(plan.stages)
    for i, stage in enumerate(plan.stages):
        derived = in_flight(len(plan.stages), i, plan.boundaries, virtual)
        if stage.in_flight != derived:
            what = f"in_flight is {stage.in_flight}, but the schedule holds {derived}"
            yield Fault(what, f"plan decisions.stages[{i}].in_flight", f"write {derived}")
