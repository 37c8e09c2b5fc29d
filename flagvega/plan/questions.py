"""What ``action=profile`` asks an engine to measure, and the profile that the answers are.

A question is an object: ``what`` (``layers``, ``optimizer``, ``link``, ``ring`` or ``step``), on which chip and
degrees, and what an engine needs to know. The answer is the question with the measured numbers beside it. Questions
of one round are for different devices and may be measured at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flagvega.cluster.nodes import Cluster, Node
from flagvega.layout.build import build_plan
from flagvega.layout.plan import Mesh, Plan
from flagvega.layout.ranks import places
from flagvega.layout.request import LayoutRequest, MeshRequest
from flagvega.model.workload import Choices, Workload
from flagvega.plan.profile import CollectiveRow, LayerRow, LinkRow, OptimizerRow, OverheadRow, Profile, Validity
from flagvega.plan.stages import layer_kinds

Question = dict[str, Any]
Rounds = tuple[tuple[Question, ...], ...]
MICRO_BATCHES = (1, 2, 4)
LAYERS_OF_A_KIND = 2
"""So that one of them follows another, and there are more numbers to take the median of."""
DEVICES_OF_A_CHIP = 8


@dataclass(frozen=True)
class Probe:
    """Where to measure what."""

    cluster: Cluster
    """The devices that measure."""
    plan: Plan
    """One mesh for each kind of chip; it is never trained."""
    rounds: Rounds

    @property
    def num_questions(self) -> int:
        """In all rounds."""
        return sum(len(round_) for round_ in self.rounds)


def ask(work: Workload, choices: Choices, layout: LayoutRequest, cluster: Cluster, micro_batches: Sequence[int],
        why_illegal: Callable[[Mesh], str | None]) -> Probe:  # fmt: skip
    """The questions for a model on a cluster; ``why_illegal`` is the engine's word on a mesh."""
    chips = list(dict.fromkeys(chip for node in cluster.nodes for chip in node.devices))
    degrees = {chip: list(_degrees(chip, cluster, choices, why_illegal)) for chip in chips}
    wanted = {chip: max(2, *(tp for tp, _, _ in degrees[chip])) for chip in chips if degrees[chip]}
    small = _first_devices(cluster, wanted)
    here = {chip: sum(node.devices.count(chip) for node in small.nodes) for chip in wanted}
    meshes = tuple(MeshRequest(tp=here[chip], dp=1, chip=chip) for chip in wanted)
    request = replace(
        layout, meshes=meshes, micro_batch_size=1, layer_split=None, virtual_stages=1, recompute=(),
        distributed_optimizer=False, slow_boundaries=(),
    )  # fmt: skip
    plan = build_plan(request, small)
    rounds = [
        *_layer_rounds(work, degrees, micro_batches),
        *([question] for question in _link_questions(plan, layout, work, max(micro_batches))),
        *([question] for question in _ring_questions(plan)),
        [{"what": "step", "chips": list(wanted), "ranks": list(range(plan.world_size))}],
    ]
    return Probe(small, plan, tuple(tuple(round_) for round_ in rounds))


def fingerprint(valid: Validity, arguments: Mapping[str, Any]) -> str:
    """Tells answers of other models and settings apart."""
    text = json.dumps([valid.model, valid.seq, valid.dtype, valid.engine, arguments], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def left(probe: Probe, answers: Sequence[Mapping[str, Any]]) -> Rounds:
    """The rounds without the questions that are answered."""
    known = {_key(answer) for answer in answers}
    rounds = (tuple(question for question in round_ if _key(question) not in known) for round_ in probe.rounds)
    return tuple(round_ for round_ in rounds if round_)


def num_answered(probe: Probe, answers: Sequence[Mapping[str, Any]]) -> int:
    """Questions that have an answer."""
    return probe.num_questions - sum(len(round_) for round_ in left(probe, answers))


def profile_of(answers: Sequence[Mapping[str, Any]], valid: Validity) -> Profile:
    """The profile that answers are; a question that was skipped is left out."""
    measured = [answer for answer in answers if "skipped" not in answer]
    rows = [answer for answer in measured if "kind" in answer]
    return Profile(
        layers=tuple(
            LayerRow(
                row["chip"], row["tp"], row["micro_batch"], row["forward_s"], row["backward_s"], row["kind"],
                sp=row["sp"], activation_bytes=row["activation_bytes"], parameter_bytes=row["parameter_bytes"],
            )
            for row in rows
        ),
        optimizer=tuple(
            OptimizerRow(row["chip"], row["parameters"], row["seconds"]) for row in measured if "parameters" in row
        ),
        links=tuple(
            LinkRow(row["chip"], row["other"], row["latency_s"], row["bytes_per_s"], row["hosts"])
            for row in measured
            if row["what"] == "link"
        ),
        collectives=tuple(
            CollectiveRow(row["chip"], len(row["ranks"]), row["latency_s"], row["bytes_per_s"], row["hosts"])
            for row in measured
            if row["what"] == "ring"
        ),
        overheads=tuple(
            OverheadRow(chip, row["step_s"]) for row in measured if row["what"] == "step" for chip in row["chips"]
        ),
        valid=valid,
    )  # fmt: skip


def _key(question: Mapping[str, Any]) -> str:
    names = ("what", "chip", "other", "tp", "etp", "sp", "micro_batch", "kinds", "ranks", "transport", "hosts")
    return json.dumps([question.get(name) for name in names])


def _degrees(chip: str, cluster: Cluster, choices: Choices,
             why_illegal: Callable[[Mesh], str | None]) -> Iterator[tuple[int, int, bool]]:  # fmt: skip
    """(tp, etp, sp) that are to be measured: the first of the latter two that is legal."""
    size = min(max(node.devices.count(chip) for node in cluster.nodes), DEVICES_OF_A_CHIP, choices.max_tp or 2**30)
    for tp in choices.tp or [2**i for i in range(size.bit_length()) if 2**i <= size]:
        if tp > size:
            continue
        for etp in dict.fromkeys(choices.etp or (tp, 1)):
            legal = [
                sp
                for sp in (choices.sp if tp > 1 else (False,))
                if tp % etp == 0
                and why_illegal(Mesh(0, chip, tp, 1, 1, 1, etp, sp, tuple((0, i) for i in range(tp)))) is None
            ]
            if legal:
                yield tp, etp, legal[0]
                break


def _first_devices(cluster: Cluster, wanted: Mapping[str, int]) -> Cluster:
    """So many devices of each chip, of the node that has most of it."""
    kept: list[list[str]] = [[] for _ in cluster.nodes]
    for chip, count in wanted.items():
        counts = [node.devices.count(chip) for node in cluster.nodes]
        best = max(range(len(counts)), key=counts.__getitem__)
        kept[best] += [chip] * min(count, counts[best])
    return Cluster(tuple(Node(node.host, tuple(its)) for node, its in zip(cluster.nodes, kept, strict=True)))


def _layer_rounds(work: Workload, degrees: Mapping[str, list[tuple[int, int, bool]]],
                  micro_batches: Sequence[int]) -> Iterator[list[Question]]:  # fmt: skip
    present = list(dict.fromkeys(layer_kinds(work.shape)))
    kinds = [kind for kind in present for _ in range(LAYERS_OF_A_KIND)]
    for tp in sorted({tp for its in degrees.values() for tp, _, _ in its}):
        for size in micro_batches:
            round_ = []
            for chip, its in degrees.items():
                for _, etp, sp in [each for each in its if each[0] == tp]:
                    optimizer = tp == its[0][0] and size == micro_batches[0]
                    place = {"chip": chip, "tp": tp, "etp": etp, "sp": sp, "micro_batch": size}
                    round_.append({"what": "layers", **place, "kinds": kinds, "optimizer": optimizer})
            yield round_
    yield [
        {"what": "optimizer", "chip": chip, "tp": its[0][0], "etp": its[0][1], "sp": its[0][2], "micro_batch": 1,
         "kinds": kinds[:1], "optimizer": True}
        for chip, its in degrees.items() if its
    ]  # fmt: skip


def _link_questions(plan: Plan, layout: LayoutRequest, work: Workload, most: int) -> Iterator[Question]:
    """A message each way between every two kinds of chips, and between two devices of a kind."""
    by_chip: dict[str, list[Any]] = {}
    for place in places(plan):
        by_chip.setdefault(place.mesh.chip, []).append(place)
    chips = list(by_chip)
    rows = sorted({max(1, work.seq // 8), work.seq, work.seq * most})
    for i, chip in enumerate(chips):
        for other in chips[i:]:
            pair = by_chip[chip][:2] if chip == other else [by_chip[chip][0], by_chip[other][0]]
            if len(pair) < 2:
                continue
            bridged = chip != other
            yield {
                "what": "link", "chip": chip, "other": other, "ranks": [place.rank for place in pair],
                "hosts": len({place.node for place in pair}), "rows": rows,
                "transport": "bridge" if bridged else "native",
                "wire_dtype": layout.wire_dtype if bridged else None,
                "chunk_bytes": layout.chunk_bytes if bridged else 0,
            }  # fmt: skip


def _ring_questions(plan: Plan) -> Iterator[Question]:
    for mesh in plan.meshes:
        ranks = [place.rank for place in places(plan) if place.mesh.id == mesh.id]
        if len(ranks) > 1:
            yield {"what": "ring", "chip": mesh.chip, "ranks": ranks, "hosts": 1}
