"""Tables of a cluster and a plan."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

from rich.table import Table

from flagvega.cluster.nodes import Cluster
from flagvega.layout.plan import Boundary, Plan, Stage
from flagvega.layout.ranks import Place, stage_chunks, stage_places


def cluster_table(cluster: Cluster) -> Table:
    """A row for each host."""
    table = Table("node", "host", "devices", title="cluster", title_justify="left")
    for i, node in enumerate(cluster.nodes):
        chips = ", ".join(f"{count} x {chip}" for chip, count in Counter(node.devices).items())
        table.add_row(str(i), node.host, chips)
    return table


def plan_table(plan: Plan) -> Table:
    """A row for each stage."""
    names = (
        "stage",
        "layers",
        "chip",
        "devices",
        "tp",
        "cp",
        "ep",
        "dp",
        "micro-batch",
        "in flight",
        "recompute",
        "next",
    )
    table = Table(title=f"plan: {_summary(plan)}", title_justify="left")
    for name in names:
        table.add_column(name, no_wrap=name != "devices")
    for stage in plan.stages:
        replica = stage.replicas[0]
        mesh = plan.meshes[replica.mesh]
        degrees = [str(degree) for degree in (mesh.tp, mesh.cp, mesh.ep, replica.dp)]
        boundary = plan.boundaries[stage.id] if stage.id < len(plan.boundaries) else None
        table.add_row(
            *(str(stage.id), _layers(plan, stage.id), mesh.chip, _devices(stage_places(plan, stage.id)), *degrees),
            *(str(replica.micro_batch_size), str(stage.in_flight), _recompute(stage), _boundary(boundary)),
        )
    return table


def _summary(plan: Plan) -> str:
    vocabulary = f"vocabulary {plan.batch.padded_vocab_size}"
    return f"{plan.world_size} ranks, {plan.batch.samples} samples a micro-batch, {plan.schedule}, {vocabulary}"


def _layers(plan: Plan, stage: int) -> str:
    parts = []
    for chunk in stage_chunks(plan, stage):
        first, end = chunk.layers
        words = ["embedding"] if chunk.embedding else []
        words += [f"{first}-{end - 1}" if end - first > 1 else str(first)] if end > first else []
        words += ["head"] if chunk.head else []
        parts.append(" + ".join(words) or "none")
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
    return "; ".join(words) or "none"


def _boundary(boundary: Boundary | None) -> str:
    if boundary is None:
        return ""
    words: list[str] = [boundary.transport]
    words += [boundary.wire_dtype] if boundary.wire_dtype else []
    words += ["slow"] if boundary.slow else []
    return ", ".join(words)
