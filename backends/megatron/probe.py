"""What a rank does for ``action=profile``: ``python -P -m backends.megatron --run-dir DIR --profile``.

All ranks go through the same list of questions; those that a question is for measure, and every answer is
told to rank 0, which writes it down at once: what was measured before a stop is not measured again.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from backends.megatron import repairs
from backends.megatron.events import Events
from backends.megatron.groups import GroupMaker, collect, enter, stage_groups
from backends.megatron.loop import StopRequest
from backends.megatron.probe_links import fit, measure_link, measure_ring, measure_sharing
from backends.megatron.probe_model import ProbedModel, layer_arguments, probe_place
from backends.megatron.session import Settings, join_world, mesh_backends, open_device, seed_everything
from flagvega.comm.neighbour import Shape
from flagvega.comm.pipe import StageGroup
from flagvega.errors import ExitCode
from flagvega.layout.plan import Mesh
from flagvega.layout.ranks import Place, places
from flagvega.records import append_json_line, read_json

NUM_UNWATCHED = 3
"""Steps after which an emulated chip watches its timings and no longer its memory."""


class Probe:
    """One rank's part in a list of questions."""

    def __init__(self, settings: Settings, me: Place) -> None:
        self.settings, self.me = settings, me
        self.questions: dict[str, Any] = read_json(settings.run_dir / "job" / "rank.json")["probe"]
        self.device, self.torch_device = open_device(me, settings.plan)
        join_world(me, settings.plan, settings.arguments["distributed_timeout_minutes"])
        repairs.mend()
        for step in range(NUM_UNWATCHED):
            self.device.begin_step(step)
        self.maker = GroupMaker(me.rank)
        self.backends = mesh_backends(settings.plan)
        self.meshes = {mesh.chip: mesh for mesh in settings.plan.meshes}

    def make_groups(self, question: Mapping[str, Any]) -> Any:
        """What the question needs for communication; collective over the world. None: it is not for this rank."""
        ranks = self._ranks(question)
        if question["what"] == "step":
            return dist.group.WORLD
        mesh = self.meshes[question["chip"]]
        backend = self.backends[mesh.id]
        if question["what"] == "link":
            own = question["transport"] == "native" and backend != "gloo"
            ways = tuple(dist.new_group(ranks, backend=backend) if own else None for _ in range(2))
            alone = [self.maker.make([rank], self._backend(rank)) for rank in ranks]
            return (ways, alone[ranks.index(self.me.rank)]) if self.me.rank in ranks else None
        if question["what"] == "ring":
            group = self.maker.make(ranks, backend)
            return group if self.me.rank in ranks else None
        groups = stage_groups(self.maker, ranks, _part(question, mesh), backend)
        return collect(groups | {"pp": StageGroup(0, 1)}, groups["tp"]) if self.me.rank in ranks else None

    def answer(self, question: Mapping[str, Any], groups: Any) -> list[dict[str, Any]]:
        """What was measured, told by one of the ranks that the question is for."""
        if question["what"] == "link":
            return self._link(question, *groups)
        if question["what"] == "ring":
            return self._ring(question, groups)
        if question["what"] == "step":
            step_s = measure_sharing(groups)
            return [{**question, "step_s": step_s}] if self.me.rank == 0 else []
        try:
            return self._model(question, groups)
        except torch.OutOfMemoryError as error:
            return [{**question, "skipped": f"out of memory: {str(error).splitlines()[0]}"}]

    def _model(self, question: Mapping[str, Any], collection: Any) -> list[dict[str, Any]]:
        kinds, ends = list(question["kinds"]), question["what"] == "layers"
        arguments = layer_arguments(self.settings.arguments, kinds)
        rank = dist.get_rank(collection.tp)
        part = _part(question, self.meshes[question["chip"]])
        plan, me = probe_place(part, question["micro_batch"], self.settings.plan, rank, len(kinds), ends)
        enter(collection, me, 1, 1)
        seed_everything(arguments, me)
        probed = ProbedModel(arguments, plan, me, collection, self.device, self.torch_device)

        def agree(number: float) -> float:
            shared = torch.tensor([number], dtype=torch.float64, device=self.torch_device)
            dist.broadcast(shared, dist.get_global_rank(collection.tp, 0), group=collection.tp)
            return float(shared)

        rows = [] if not ends else probed.measure(kinds, agree)
        if question["optimizer"]:
            rows.append({"parameters": probed.num_parameters, "seconds": probed.measure_optimizer()})
        del probed
        gc.collect()
        if self.torch_device.type != "cpu":
            self.device.namespace.empty_cache()
        return [{**question, **row} for row in rows] if rank == 0 else []

    def _link(self, question: Mapping[str, Any], ways: tuple[Any, Any], alone: Any) -> list[dict[str, Any]]:
        them = [places(self.settings.plan)[rank] for rank in question["ranks"]]
        arguments = self.settings.arguments
        dtype = next((getattr(torch, long) for name, long in HALVES.items() if arguments[name]), torch.float32)
        shapes = [Shape(rows, arguments["hidden_size"], dtype, self.torch_device) for rows in question["rows"]]
        points = measure_link(question, self.me, them, ways, alone, shapes, self.device)
        latency_s, per_byte = fit(points)
        row = {**question, "latency_s": latency_s, "bytes_per_s": 1 / per_byte}
        return [row] if self.me.rank == them[0].rank else []

    def _ring(self, question: Mapping[str, Any], group: Any) -> list[dict[str, Any]]:
        num_ranks = len(question["ranks"])
        latency_s, bytes_per_s = measure_ring(group, num_ranks, self.torch_device, self.device)
        row = {**question, "latency_s": latency_s, "bytes_per_s": bytes_per_s}
        return [row] if dist.get_rank(group) == 0 else []

    def _ranks(self, question: Mapping[str, Any]) -> list[int]:
        if "ranks" in question:
            return list(question["ranks"])
        mesh = self.meshes[question["chip"]]
        wanted = mesh.devices[: question["tp"]]
        return [place.rank for place in places(self.settings.plan) if (place.node, place.local) in wanted]

    def _backend(self, rank: int) -> str:
        return self.backends[places(self.settings.plan)[rank].mesh.id]


def _part(question: Mapping[str, Any], mesh: Mesh) -> Mesh:
    """The part of a chip's devices that a question is for."""
    tp, etp, sp = question["tp"], question["etp"], question["sp"]
    return Mesh(0, mesh.chip, tp, 1, 1, 1, etp, sp, mesh.devices[:tp])


HALVES = {"bf16": "bfloat16", "fp16": "float16"}


def run(settings: Settings, me: Place, events: Events) -> int:
    """Answer every question; the exit code."""
    probe, stop = Probe(settings, me), StopRequest(settings.run_dir)
    events.tell("ready", device=str(probe.torch_device))
    for round_ in probe.questions["rounds"]:
        code = _agree_to_stop(stop.code())
        if code:
            return code
        prepared = [(question, probe.make_groups(question)) for question in round_]
        mine = [row for question, groups in prepared if groups is not None for row in probe.answer(question, groups)]
        for row in _gather(mine):
            if me.rank == 0:
                append_json_line(settings.run_dir / probe.questions["file"], row)
    if verdict := probe.device.timing_verdict():
        events.tell("invalid_timing", reason=verdict)
    return int(ExitCode.DONE)


def _agree_to_stop(code: int) -> int:
    shared = torch.tensor(code)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return int(shared)


def _gather(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of all ranks, as text: nothing that a peer sends is ever run."""
    mine = torch.frombuffer(bytearray(json.dumps(rows).encode()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([len(mine)]))
    longest = max(int(size) for size in sizes)
    padded = torch.zeros(longest, dtype=torch.uint8)
    padded[: len(mine)] = mine
    texts = [torch.zeros(longest, dtype=torch.uint8) for _ in sizes]
    dist.all_gather(texts, padded)
    found: list[dict[str, Any]] = []
    for text, size in zip(texts, sizes, strict=True):
        found += json.loads(bytes(text[: int(size)].tolist()).decode())
    return found
