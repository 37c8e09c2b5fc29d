"""From a layout given by hand and the devices at hand to a plan. No search: what is asked, or why not."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from flagvega.errors import ConfigError, Fault
from flagvega.layout.plan import Batch, Boundary, Chunk, Mesh, Plan, Recompute, Replica, Stage
from flagvega.layout.request import LayoutRequest, MeshRequest
from flagvega.layout.schedule import in_flight

if TYPE_CHECKING:
    from flagvega.cluster.nodes import Cluster

Device = tuple[int, int]


def build_plan(request: LayoutRequest, cluster: Cluster) -> Plan:
    """The plan that the request describes; ConfigError with every reason why there is none."""
    meshes = place_meshes(request, cluster)
    num_stages = sum(mesh.num_stages for mesh in meshes)
    split = split_layers(request, num_stages)
    samples = request.micro_batch_size * meshes[0].dp
    faults = [fault for mesh in meshes if (fault := _batch_fault(request, mesh, meshes[0]))]
    if len(request.recompute) > 1 and len(request.recompute) != num_stages:
        what = f"recompute is given for {len(request.recompute)} stages, but there are {num_stages}"
        faults.append(Fault(what, request.where.get("recompute", "")))
    if faults:
        raise ConfigError(faults)
    mesh_of = tuple(mesh for mesh in meshes for _ in range(mesh.num_stages))
    boundaries = tuple(_boundary(request, mesh_of[i], mesh_of[i + 1], i) for i in range(num_stages - 1))
    stages = tuple(
        Stage(
            id=i,
            replicas=(Replica(mesh.id, mesh.dp, samples // mesh.dp),),
            in_flight=in_flight(num_stages, i, boundaries, request.virtual_stages),
            recompute=_recompute(request, i),
        )
        for i, mesh in enumerate(mesh_of)
    )
    return Plan(
        batch=Batch(samples, request.loss, request.padded_vocab_size),
        meshes=meshes,
        stages=stages,
        chain=_chain(split, num_stages),
        boundaries=boundaries,
        schedule="interleaved" if request.virtual_stages > 1 else "1f1b",
        distributed_optimizer=request.distributed_optimizer,
        tied_embeddings=request.tied_embeddings,
    )


def place_meshes(request: LayoutRequest, cluster: Cluster) -> tuple[Mesh, ...]:
    """Meshes with their devices: each takes, in node order, free devices of its chip."""
    free: list[tuple[Device, str]] = [
        ((i, local), chip) for i, node in enumerate(cluster.nodes) for local, chip in enumerate(node.devices)
    ]
    meshes: list[Mesh] = []
    faults: list[Fault] = []
    for i, wanted in enumerate(request.meshes):
        chip = wanted.chip or (free[0][1] if free else "")
        pool = [device for device, its in free if its == chip]
        where = request.where.get("meshes", "")
        dp = wanted.dp if wanted.dp is not None else _filling_dp(wanted, len(pool))
        num_devices = wanted.tp * wanted.cp * wanted.pp * dp
        if dp == 0 or num_devices > len(pool) or (wanted.dp is None and num_devices != len(pool)):
            faults.append(_devices_fault(wanted, i, len(request.meshes), chip or "any chip", len(pool), where))
            continue
        devices = _take(pool, wanted.tp, num_devices)
        taken = set(devices)
        free = [(device, its) for device, its in free if device not in taken]
        etp = wanted.tp if wanted.etp is None else wanted.etp
        if wanted.tp * wanted.cp * dp % (etp * wanted.ep):
            faults.append(_experts_fault(wanted, dp, etp, where))
            continue
        meshes.append(Mesh(i, chip, wanted.tp, wanted.cp, wanted.ep, dp, etp, wanted.sp, devices))
    if not faults:
        faults = [fault for i, node in enumerate(cluster.nodes) if (fault := _gap_fault(meshes, i, node.host))]
    if faults:
        raise ConfigError(faults)
    return tuple(meshes)


def split_layers(request: LayoutRequest, num_stages: int) -> tuple[int, ...]:
    """Layers of every chunk in model order."""
    num_chunks = num_stages * request.virtual_stages
    given = request.layer_split
    if given is None:
        return even_split(request.num_layers, num_chunks)
    where = request.where.get("layer_split", "")
    as_sum = f"{' + '.join(map(str, given))} = {sum(given)}"
    if len(given) not in (num_stages, num_chunks):
        what = f"the split {list(given)} has {len(given)} entries, but there are {num_stages} stages"
        raise ConfigError(Fault(what, where, _split_fix(request, num_stages)))
    if min(given) < 0 or sum(given) != request.num_layers:
        what = f"the split has {as_sum} layers, but the model has {request.num_layers}"
        raise ConfigError(Fault(what, where, _split_fix(request, num_stages)))
    if len(given) == num_chunks:
        return given
    uneven = [layers for layers in given if layers % request.virtual_stages]
    if uneven:
        what = f"{uneven[0]} layers of a stage cannot be split evenly over its {request.virtual_stages} virtual stages"
        raise ConfigError(Fault(what, where, f"give {num_chunks} entries, one for every virtual stage in model order"))
    return tuple(layers // request.virtual_stages for layers in given) * request.virtual_stages


def even_split(num_layers: int, parts: int) -> tuple[int, ...]:
    """As even as can be; earlier parts take the rest, for the last one has the head."""
    layers, rest = divmod(num_layers, parts)
    return tuple(layers + (i < rest) for i in range(parts))


def _split_fix(request: LayoutRequest, num_stages: int) -> str:
    return f"for example {list(even_split(request.num_layers, num_stages))}"


def _chain(split: tuple[int, ...], num_stages: int) -> tuple[Chunk, ...]:
    ends = list(accumulate(split))
    last = len(split) - 1
    return tuple(
        Chunk(i % num_stages, (end - split[i], end), embedding=i == 0, head=i == last) for i, end in enumerate(ends)
    )


def _recompute(request: LayoutRequest, stage: int) -> tuple[Recompute, ...]:
    if not request.recompute:
        return (Recompute(),)
    return request.recompute[0] if len(request.recompute) == 1 else request.recompute[stage]


def _boundary(request: LayoutRequest, sender: Mesh, receiver: Mesh, index: int) -> Boundary:
    unlike = sender.chip != receiver.chip
    slow = unlike if request.slow_boundaries is None else index in request.slow_boundaries
    if not unlike and not (request.bridge_meshes and sender.id != receiver.id):
        return Boundary("native", slow=slow)
    return Boundary("bridge", request.wire_dtype, request.chunk_bytes, slow)


def _filling_dp(wanted: MeshRequest, at_hand: int) -> int:
    return at_hand // (wanted.tp * wanted.cp * wanted.pp)


def _take(pool: list[Device], tp: int, num_devices: int) -> tuple[Device, ...]:
    """``num_devices`` of the pool, whole tp groups of a node first."""
    whole: list[Device] = []
    for node in dict.fromkeys(node for node, _ in pool):
        here = [device for device in pool if device[0] == node]
        whole += here[: len(here) // tp * tp]
    return tuple((whole if len(whole) >= num_devices else pool)[:num_devices])


def _devices_fault(wanted: MeshRequest, index: int, num_meshes: int, chip: str, at_hand: int, where: str) -> Fault:
    degrees = {"tp": wanted.tp, "cp": wanted.cp, "dp": wanted.dp, "pp": wanted.pp}
    product = " x ".join(f"{name} {degree}" for name, degree in degrees.items() if degree is not None)
    size = wanted.tp * wanted.cp * wanted.pp * (wanted.dp or 1)
    mesh = f"mesh {index}: " if num_meshes > 1 else ""
    if wanted.dp is None and size <= at_hand:
        what = f"{mesh}{product} = {size} devices, which do not divide the {at_hand} of {chip} at hand"
    else:
        what = f"{mesh}{product} = {size} devices, but {at_hand} of {chip} are at hand"
    return Fault(what, where, _nearest_degrees(wanted, at_hand))


def _experts_fault(wanted: MeshRequest, dp: int, etp: int, where: str) -> Fault:
    size = wanted.tp * wanted.cp * dp
    product = f"tp {wanted.tp} x cp {wanted.cp} x dp {dp} = {size}"
    fits = [ep for ep in range(1, size + 1) if size % (etp * ep) == 0]
    nearest = min(fits, key=lambda ep: abs(ep - wanted.ep), default=None)
    fix = f"ep {nearest} would fit" if nearest else f"etp {wanted.tp} would fit"
    return Fault(f"etp {etp} x ep {wanted.ep} = {etp * wanted.ep} does not divide {product}", where, fix)


def _nearest_degrees(wanted: MeshRequest, at_hand: int) -> str:
    """The smallest change of one degree that fits."""
    degrees = {"dp": wanted.dp, "pp": wanted.pp, "cp": wanted.cp, "tp": wanted.tp}
    size = wanted.tp * wanted.cp * wanted.pp * (wanted.dp or 1)
    changes = [
        (abs(other - degree), f"{name} {other} would fit")
        for name, degree in degrees.items()
        if degree is not None
        for other in range(1, at_hand + 1)
        if other != degree and _fits(size // degree * other, at_hand, fill=wanted.dp is None)
    ]
    return min(changes, key=lambda change: change[0])[1] if changes else "add devices, or lower tp, cp, dp or pp"


def _fits(size: int, at_hand: int, fill: bool) -> bool:
    return at_hand % size == 0 if fill else size <= at_hand


def _gap_fault(meshes: list[Mesh], node: int, host: str) -> Fault | None:
    """Ranks of a host are numbered from 0 without gaps, so its idle devices must be its last ones."""
    used = {local for mesh in meshes for its, local in mesh.devices if its == node}
    idle = [local for local in range(max(used, default=-1)) if local not in used]
    if not idle:
        return None
    what = f"device {idle[0]} of {host} would be idle while a later one works"
    return Fault(what, fix="leave idle devices out of the cluster, list them last, or give a mesh more dp")


def _batch_fault(request: LayoutRequest, mesh: Mesh, first: Mesh) -> Fault | None:
    samples = request.micro_batch_size * first.dp
    if samples % mesh.dp == 0:
        return None
    what = (
        f"micro_batch_size {request.micro_batch_size} x dp {first.dp} of mesh 0 = {samples} samples, "
        f"which dp {mesh.dp} of mesh {mesh.id} does not divide"
    )
    nearest = next(
        size
        for size in range(request.micro_batch_size, mesh.dp * 2 + request.micro_batch_size)
        if size * first.dp % mesh.dp == 0
    )
    return Fault(what, request.where.get("micro_batch_size", ""), f"micro_batch_size {nearest} would fit")
