"""Tables of a cluster and a plan."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.table import Table

from flagvega.cluster.nodes import Cluster
from flagvega.layout.plan import Boundary, Mesh, Plan, Replica, Stage
from flagvega.layout.ranks import Place, stage_chunks, stage_places


def cluster_table(cluster: Cluster) -> Table:
    """A row for each host."""
    table = Table("node", "host", "devices", title="cluster", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for i, node in enumerate(cluster.nodes):
        chips = ", ".join(f"{count} x {chip}" for chip, count in Counter(node.devices).items())
        table.add_row(str(i), node.host, chips)
    return table


def plan_table(plan: Plan) -> Table:
    """A row for each stage."""
    table = Table(title=f"plan: {_summary(plan)}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    rows = [_stage_cells(plan, stage) for stage in plan.stages]
    for name in rows[0]:
        if name not in ("recompute", "next") or any(row[name] for row in rows):
            # Where a terminal is too narrow, words go on in the next line and none is lost.
            table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(row[str(column.header)] for column in table.columns))
    return table


def _stage_cells(plan: Plan, stage: Stage) -> dict[str, str]:
    replica = stage.replicas[0]
    mesh = plan.meshes[replica.mesh]
    boundary = plan.boundaries[stage.id] if stage.id < len(plan.boundaries) else None
    return {
        "stage": str(stage.id),
        "layers": _layers(plan, stage.id),
        "chip": mesh.chip,
        "devices": _devices(stage_places(plan, stage.id)),
        "degrees": _degrees(mesh, replica),
        "mbs": str(replica.micro_batch_size),
        "in flight": str(stage.in_flight),
        "recompute": _recompute(stage),
        "next": _boundary(boundary),
    }


def _degrees(mesh: Mesh, replica: Replica) -> str:
    """``tp2 dp4``: those above 1."""
    degrees = {"tp": mesh.tp, "cp": mesh.cp, "ep": mesh.ep, "dp": replica.dp}
    words = [f"{name}{degree}" for name, degree in degrees.items() if degree > 1] + (["sp"] if mesh.sp else [])
    return " ".join(words) or "1"


def _summary(plan: Plan) -> str:
    vocabulary = f"vocabulary {plan.batch.padded_vocab_size}"
    return f"{plan.world_size} ranks, {plan.batch.samples} samples a micro-batch, {plan.schedule}, {vocabulary}"


def _layers(plan: Plan, stage: int) -> str:
    parts = []
    for chunk in stage_chunks(plan, stage):
        first, end = chunk.layers
        words = ["emb"] if chunk.embedding else []
        words += [f"{first}-{end - 1}" if end - first > 1 else str(first)] if end > first else []
        words += ["head"] if chunk.head else []
        parts.append("+".join(words) or "none")
    return " | ".join(parts)


def _devices(places: tuple[Place, ...]) -> str:
    """``0:0-3 1:0`` is devices 0 to 3 of node 0 and device 0 of node 1."""
    parts = []
    for node, group in groupby(places, key=lambda place: place.node):
        local = [place.local for place in group]
        is_run = local == list(range(local[0], local[0] + len(local))) and len(local) > 1
        parts.append(f"{node}:" + (f"{local[0]}-{local[-1]}" if is_run else ",".join(map(str, local))))
    return " ".join(parts)


def _recompute(stage: Stage) -> str:
    words = []
    for part in stage.recompute:
        if part.granularity is None:
            continue
        method = f" {part.method} {part.num_layers}" if part.method else ""
        words.append(part.granularity + method + (f" until micro-batch {part.until}" if part.until is not None else ""))
    return "; ".join(words)


def _boundary(boundary: Boundary | None) -> str:
    if boundary is None:
        return ""
    words: list[str] = [boundary.transport]
    words += [boundary.wire_dtype] if boundary.wire_dtype else []
    words += ["slow"] if boundary.slow else []
    return ", ".join(words)
