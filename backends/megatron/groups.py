"""Process groups of a plan, as megatron-core wants them.

Every rank walks every group of every stage in the same order, since making a group is collective
over the world. Where megatron-core passes no groups along, it reads module globals: these are set
to the rank's own mesh.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.distributed as dist

from flagvega.comm.pipe import StageGroup
from flagvega.layout.plan import Plan
from flagvega.layout.ranks import Place, stage_places


@dataclass(frozen=True)
class Groups:
    """The rank's groups: megatron-core's collection, and those of the plan's boundaries."""

    collection: Any
    boundaries: tuple[tuple[Any, Any], ...]
    tied: Any
    """First and last stage together, or None."""


class GroupMaker:
    """Makes each set of ranks into a group once per backend; remembers those that hold this rank."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._made: dict[tuple[str, tuple[int, ...]], Any] = {}

    def make(self, ranks: Iterable[int], backend: str) -> Any:
        """The group of ``ranks``; collective over the world."""
        key = (backend, tuple(int(rank) for rank in ranks))
        if key not in self._made:
            self._made[key] = dist.new_group(list(key[1]), backend=backend)
        return self._made[key]

    def find(self, groups: Iterable[Iterable[int]], backend: str) -> Any:
        """Make all ``groups``; the one with this rank in it."""
        mine = None
        for ranks in [[int(rank) for rank in group] for group in groups]:
            made = self.make(ranks, backend)
            mine = made if self.rank in ranks else mine
        return mine


def build_groups(plan: Plan, me: Place, backends: dict[int, str]) -> Groups:
    """All groups of the plan; ``backends`` maps a mesh id to its chip's collective backend."""
    maker = GroupMaker(me.rank)
    mine: dict[str, Any] = {}
    for stage in plan.stages:
        places = stage_places(plan, stage.id)
        mesh = places[0].mesh
        groups = stage_groups(maker, [place.rank for place in places], mesh, backends[mesh.id])
        if stage.id == me.stage.id:
            mine = groups
    mine["pp"] = _pipeline_group(plan, me, maker, backends)
    collection = collect(mine, dist.group.WORLD)
    enter(collection, me, len(plan.stages), len(plan.chain) // len(plan.stages))
    return Groups(collection, _boundary_groups(plan, backends), _tied_group(plan, maker))


def collect(mine: dict[str, Any], world: Any) -> Any:
    """megatron-core's collection; ``world`` is the group that the whole model is spread over."""
    from megatron.core.process_groups_config import ProcessGroupCollection

    return ProcessGroupCollection(
        **mine, mp=world, tp_ep_pp=world, intra_dist_opt=world, inter_dist_opt=None, embd=None, pos_embd=None
    )


def stage_groups(maker: GroupMaker, ranks: list[int], mesh: Any, backend: str) -> dict[str, Any]:
    """Every group inside a stage on ``ranks``; collective over the world."""
    grid = np.array(ranks).reshape(mesh.dp, mesh.cp, mesh.tp)
    experts = np.array(ranks).reshape(-1, mesh.ep, mesh.etp)  # expert dp, ep, expert tp

    def find(array: Any, *axes: int) -> Any:
        """Groups along ``axes``: all other axes fixed."""
        rest = [axis for axis in range(array.ndim) if axis not in axes]
        return maker.find(array.transpose(*rest, *axes).reshape(-1, *[_size(array, axes)]), backend)

    dp_cp = find(grid, 0, 1)
    expert_dp = find(experts, 0)
    return {
        "tp": find(grid, 2),
        "cp": find(grid, 1),
        "dp": find(grid, 0),
        "tp_cp": find(grid, 1, 2),
        "dp_cp": dp_cp,
        "intra_dp_cp": dp_cp,
        "tp_dp_cp": find(grid, 0, 1, 2),
        "ep": find(experts, 1),
        "expt_tp": find(experts, 2),
        "tp_ep": find(experts, 1, 2),
        "expt_dp": expert_dp,
        "intra_expt_dp": expert_dp,
    }


def _size(array: Any, axes: tuple[int, ...]) -> int:
    return int(np.prod([array.shape[axis] for axis in axes]))


def _pipeline_group(plan: Plan, me: Place, maker: GroupMaker, backends: dict[int, str]) -> Any:
    """A real group for the interleaved schedule's own transport, a stand-in for ours."""
    if plan.schedule != "interleaved":
        return StageGroup(me.stage.id, len(plan.stages))
    columns = np.array([[place.rank for place in stage_places(plan, stage.id)] for stage in plan.stages]).T
    return maker.find(columns, backends[me.mesh.id])


def _boundary_groups(plan: Plan, backends: dict[int, str]) -> tuple[tuple[Any, Any], ...]:
    """Two groups (forward, backward) per boundary; host memory and CPUs share the default group."""
    found: list[tuple[Any, Any]] = []
    for i, boundary in enumerate(plan.boundaries):
        places = stage_places(plan, i) + stage_places(plan, i + 1)
        backend = backends[places[0].mesh.id]
        if boundary.transport == "bridge" or backend == "gloo" or plan.schedule == "interleaved":
            found.append((None, None))
        else:
            ranks = [place.rank for place in places]
            found.append((dist.new_group(ranks, backend=backend), dist.new_group(ranks, backend=backend)))
    return tuple(found)


def _tied_group(plan: Plan, maker: GroupMaker) -> Any:
    if not plan.tied_embeddings or len(plan.stages) == 1:
        return None
    ends = stage_places(plan, plan.chain[0].stage) + stage_places(plan, plan.chain[-1].stage)
    return maker.make(sorted({place.rank for place in ends}), "gloo")


def enter(groups: Any, me: Place, num_stages: int, num_virtual: int) -> None:
    """Set megatron-core's globals to the rank's groups."""
    from megatron.core import parallel_state as state

    state._TENSOR_MODEL_PARALLEL_GROUP = groups.tp
    state._PIPELINE_MODEL_PARALLEL_GROUP = groups.pp
    state._MODEL_PARALLEL_GROUP = groups.mp
    state._DATA_PARALLEL_GROUP = groups.dp
    state._DATA_PARALLEL_GROUP_WITH_CP = groups.dp_cp
    state._INTRA_PARTIAL_DATA_PARALLEL_GROUP_WITH_CP = groups.dp_cp
    state._CONTEXT_PARALLEL_GROUP = groups.cp
    state._TENSOR_AND_CONTEXT_PARALLEL_GROUP = groups.tp_cp
    state._TENSOR_AND_DATA_PARALLEL_GROUP = groups.tp_dp_cp
    state._TENSOR_AND_DATA_PARALLEL_GROUP_WITH_CP = groups.tp_dp_cp
    state._EXPERT_MODEL_PARALLEL_GROUP = groups.ep
    state._EXPERT_TENSOR_PARALLEL_GROUP = groups.expt_tp
    state._EXPERT_TENSOR_AND_MODEL_PARALLEL_GROUP = groups.tp_ep
    state._EXPERT_TENSOR_MODEL_PIPELINE_PARALLEL_GROUP = groups.tp_ep_pp
    state._EXPERT_DATA_PARALLEL_GROUP = groups.expt_dp
    state._INTRA_PARTIAL_EXPERT_DATA_PARALLEL_GROUP = groups.expt_dp
    state._INTRA_DISTRIBUTED_OPTIMIZER_INSTANCE_GROUP = groups.intra_dist_opt
    state.set_pipeline_model_parallel_rank(me.stage.id)
    state.set_pipeline_model_parallel_world_size(num_stages)
    state.set_virtual_pipeline_model_parallel_world_size(num_virtual if num_virtual > 1 else None)
    state.set_expert_model_parallel_rank(dist.get_rank(groups.ep))
    state.set_expert_tensor_parallel_rank(dist.get_rank(groups.expt_tp))
    state._GLOBAL_MEMORY_BUFFER = None
    state._set_global_memory_buffer()
