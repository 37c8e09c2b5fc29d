"""Stages of several chunks, as an interleaved schedule has them: what they cost, and the pipeline that they make."""

from __future__ import annotations

from flagvega.plan.costs import Side
from flagvega.plan.interleaved import Interleaved, held_chunks
from flagvega.plan.memory import Memory
from flagvega.plan.simulate import Pipeline
from flagvega.plan.space import Candidate, make_pipeline
from flagvega.plan.stages import ChunkCost, StageCost, StageCosts, Work, pinned_layers


def cost_stages(candidate: Candidate, costs: StageCosts) -> tuple[StageCost, ...]:
    """The cost of every stage, for either schedule."""
    return tuple(cost_stage(candidate, costs, stage) for stage in range(len(candidate.stages)))


def cost_stage(candidate: Candidate, costs: StageCosts, stage: int) -> StageCost:
    """The cost of one stage, for either schedule."""
    side, work = candidate.stages[stage]
    if candidate.num_chunks == 1:
        return costs.stage(side, work, candidate.in_flight(stage))
    return cost_chunks(costs, side, work, stage, len(candidate.stages))


def pipeline_of(candidate: Candidate, costs: StageCosts, stages: tuple[StageCost, ...]) -> Pipeline:
    """What the simulation runs, for either schedule."""
    pipeline = make_pipeline(candidate, costs, stages)
    if candidate.num_chunks == 1:
        return pipeline
    return Interleaved(
        pipeline.forward,
        pipeline.backward,
        pipeline.transfer,
        pipeline.in_flight,
        pipeline.num_micro_batches,
        pipeline.reduction,
        pipeline.optimizer,
        chunk_forward=tuple(tuple(chunk.forward_s for chunk in stage.chunks) for stage in stages),
        chunk_backward=tuple(tuple(chunk.backward_s for chunk in stage.chunks) for stage in stages),
        wrap_s=costs.transfer_s(candidate.stages[-1][0], candidate.stages[0][0]),
    )


def cost_chunks(costs: StageCosts, side: Side, work: Work, stage: int, num_stages: int) -> StageCost:
    """A stage of several chunks; each computes the same number of its first layers again, no more than they must."""
    its = costs.normal(work)
    key = side, its, stage, num_stages
    if key not in costs.stacks:
        costs.stacks[key] = _cost_chunks(costs, side, its, stage, num_stages)
    return costs.stacks[key]


def _cost_chunks(costs: StageCosts, side: Side, work: Work, stage: int, num_stages: int) -> StageCost:
    most = max(chunk.num_layers for chunk in work.chunks)
    if costs.pinned is not None:
        return _recomputing(costs, side, work, stage, num_stages, pinned_layers(costs.pinned, most))
    first = _recomputing(costs, side, work, stage, num_stages, 0)
    if costs.fits(side, first):
        return first
    last = _recomputing(costs, side, work, stage, num_stages, most)
    if costs.fits(side, last):
        for layers in range(1, most):
            found = _recomputing(costs, side, work, stage, num_stages, layers)
            if costs.fits(side, found):
                return found
    return last


def _recomputing(costs: StageCosts, side: Side, work: Work, stage: int, num_stages: int, layers: int) -> StageCost:
    chunks = [costs.chunk(side, chunk, min(layers, chunk.num_layers)) for chunk in work.chunks]
    # The engine keeps what a chunk sends until its backward pass.
    kept = costs.parts(side).kinds[costs.layer_kinds[0]][2].entry
    saved = [its.memory.activations + (0 if chunk.head else kept)
             for its, chunk in zip(chunks, work.chunks, strict=True)]  # fmt: skip
    m = costs.num_micro_batches
    activations = max(
        sum(count * size for count, size in zip(counts, saved, strict=True))
        for counts in held_chunks(stage, num_stages, len(chunks), min(m, 4 * num_stages))
    )
    # Chunks finish one after the other: where reductions overlap, only that of the first chunk is left at the end.
    late = chunks[:1] if costs.work.overlap_reduction else chunks
    return StageCost(
        sum(chunk.forward_s for chunk in chunks),
        sum(chunk.backward_s for chunk in chunks),
        sum(chunk.reduction_s for chunk in late),
        sum(chunk.optimizer_s for chunk in chunks),
        sum(chunk.recomputed for chunk in chunks),
        Memory(
            sum(chunk.memory.weights for chunk in chunks),
            sum(chunk.memory.gradients for chunk in chunks),
            sum(chunk.memory.optimizer for chunk in chunks),
            activations,
            max(chunk.memory.workspace for chunk in chunks),
            chunks[0].memory.context,
        ),
        tuple(ChunkCost(chunk.forward_s, chunk.backward_s, chunk.recomputed) for chunk in chunks),
    )


def deal(num_layers: int, num_stages: int, num_chunks: int, first: int, last: int) -> tuple[int, ...] | None:
    """Layers of every chunk in model order, when the first stage has ``first`` and the last has ``last``.

    The others are as even as can be, earlier ones take the rest. Within a stage chunks are as even as can be; the
    first stage gives less to its first, which embeds, and the last to its last, which has the head.
    None when a chunk other than these two would be empty.
    """
    between = num_stages - 2
    rest = num_layers - first - last
    if rest < 0 or (between == 0 and rest):
        return None
    inner = [rest // between + (i < rest % between) for i in range(between)] if between else []
    by_stage = []
    for stage, layers in enumerate([first, *inner, last]):
        least, more = divmod(layers, num_chunks)
        # Larger chunks last in the first stage, first in all others.
        is_larger = [i >= num_chunks - more if stage == 0 else i < more for i in range(num_chunks)]
        by_stage.append([least + larger for larger in is_larger])
    split = tuple(by_stage[stage][chunk] for chunk in range(num_chunks) for stage in range(num_stages))
    return split if all(split[1:-1]) else None


def chunked_stages(side: Side, split: tuple[int, ...], num_stages: int) -> tuple[tuple[Side, Work], ...]:
    """Stages on one side with the layers of a split in model order."""
    chunks: list[list[Work]] = [[] for _ in range(num_stages)]
    begin = 0
    for part, layers in enumerate(split):
        chunks[part % num_stages].append(Work(begin, begin + layers, part == 0, part == len(split) - 1))
        begin += layers
    return tuple(
        (side, Work(first.begin, first.end, first.embedding, first.head, tuple(later))) for first, *later in chunks
    )
