"""The pipeline's transport: hands activations forward and gradients back between stages.

A drop-in for Megatron-Core's point-to-point object (same methods, ``pp_group``, ``config``). Inside a
mesh a tensor goes whole to the rank with the same coordinates; between meshes it is resharded
(:mod:`flagvega.comm.reshard`), through host memory where the chips have no common collectives.
Receives are posted ahead, sends are never waited for inside a step: transfers overlap compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from flagvega.comm.neighbour import Neighbour, Shape
from flagvega.layout.plan import Plan
from flagvega.layout.ranks import Place, num_slow, stage_places
from flagvega.platform import Device


class StageGroup:
    """Stands in for the pipeline's process group, of which only rank() and size() are asked."""

    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._size = rank, size

    def rank(self) -> int:
        """Position in the chain."""
        return self._rank

    def size(self) -> int:
        """Length of the chain."""
        return self._size


def schedule_group(plan: Plan, stage: int) -> StageGroup:
    """The stage as the schedule sees it: each slow boundary counts as one more stage.

    The 1F1B warm-up of stage s is ``size - rank - 1``, so a stage holds one more micro-batch for
    every slow boundary downstream of it; first and last stage stay first and last.
    """
    return StageGroup(stage + num_slow(plan, stage), len(plan.stages) + num_slow(plan))


class Pipe:
    """Both sides of a rank's stage, in the words that Megatron-Core's 1F1B schedule uses."""

    virtual_pipeline_model_parallel_size = None

    def __init__(self, plan: Plan, me: Place, config: Any, sequence: int, device: Device, torch_device: torch.device,
                 tp_group: Any,
                 groups: Sequence[tuple[Any, Any]]) -> None:  # fmt: skip
        """``groups[i]`` carries boundary i forward and backward (None: the default group).

        Two groups, because receives are posted ahead: on one ordered communicator, two ranks that
        both receive first would wait for each other for ever. ``config`` is the engine's.
        """
        self.config = config
        self.pp_group = schedule_group(plan, me.stage.id)
        shape = Shape(sequence, config.hidden_size, config.pipeline_dtype, torch_device)

        def neighbour(other: int, boundary: int, take_group: Any, give_group: Any) -> Neighbour:
            others = stage_places(plan, other)
            return Neighbour(me, plan.boundaries[boundary], others, shape, plan.batch.samples, tp_group, take_group,
                             give_group, device)  # fmt: skip

        stage = me.stage.id
        self.before = self.after = None
        if stage > 0:
            forward, backward = groups[stage - 1]
            self.before = neighbour(stage - 1, stage - 1, take_group=forward, give_group=backward)
        if stage + 1 < len(plan.stages):
            forward, backward = groups[stage]
            self.after = neighbour(stage + 1, stage, take_group=backward, give_group=forward)
        self.depth = 1 + num_slow(plan)
        self.backward_scale = 1.0
        if self.before is not None and plan.batch.loss == "mean":
            # A mean loss is averaged over the receiver's own replicas: see docs/architecture.md.
            earlier = stage_places(plan, stage - 1)[0].mesh
            self.backward_scale = earlier.dp * earlier.cp / (me.mesh.dp * me.mesh.cp)

    def begin(self, num_micro_batches: int, forward_only: bool = False) -> None:
        """Post the first receives of a step."""
        if self.before is not None:
            self.before.expect(num_micro_batches, self.depth)
        if self.after is not None and not forward_only:
            self.after.expect(num_micro_batches, self.depth)

    def finish(self) -> None:
        """The step is over: let the last sends leave."""
        for side in (self.before, self.after):
            if side is not None:
                side.outbox.finish()

    @property
    def wait_s(self) -> float:
        """Seconds spent waiting for neighbours so far."""
        return sum(side.wait_s for side in (self.before, self.after) if side is not None)

    # The schedule's words. Shapes are known from the plan and need not be asked.

    def recv_forward(self, shapes: Any, is_first_stage: bool) -> list[torch.Tensor | None]:
        """The next activation, or None on the first stage."""
        return [None if self.before is None else self.before.take().requires_grad_()]

    def recv_backward(self, shapes: Any, is_last_stage: bool) -> list[torch.Tensor | None]:
        """The gradient of the oldest activation sent, or None on the last stage."""
        return [None if self.after is None else self.after.take()]

    def send_forward(self, outputs: Any, is_last_stage: bool) -> None:
        """Hand an activation to the next stage."""
        if self.after is not None:
            self.after.give(_single(outputs))

    def send_backward(self, gradients: Any, is_first_stage: bool) -> None:
        """Hand the gradient of an input to the stage before."""
        if self.before is not None:
            self.before.give(_single(gradients), self.backward_scale)

    def send_forward_recv_backward(self, outputs: Any, shapes: Any, is_last_stage: bool) -> list[torch.Tensor | None]:
        """Both, as the steady state of 1F1B asks."""
        self.send_forward(outputs, is_last_stage)
        return self.recv_backward(shapes, is_last_stage)

    def send_backward_recv_forward(
        self, gradients: Any, shapes: Any, is_first_stage: bool
    ) -> list[torch.Tensor | None]:
        """Both, as the steady state of 1F1B asks."""
        self.send_backward(gradients, is_first_stage)
        return self.recv_forward(shapes, is_first_stage)


def _single(tensors: Any) -> torch.Tensor:
    tensor = tensors[0] if isinstance(tensors, list) else tensors
    assert isinstance(tensor, torch.Tensor)
    return tensor
