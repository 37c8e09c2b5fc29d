"""What the planner asks about time: one interface, whoever answers. Memory is arithmetic and elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

from flagvega.plan.machine import Machine

Kind = Literal["embedding", "dense", "experts", "head"]
"""Kinds of work that a stage is made of; the head is the final norm, the output layer and the loss."""


@dataclass(frozen=True)
class Degrees:
    """How a stage is spread over devices."""

    tp: int = 1
    cp: int = 1
    ep: int = 1
    etp: int = 1
    dp: int = 1
    sp: bool = False

    @property
    def size(self) -> int:
        """Devices of the stage."""
        return self.tp * self.cp * self.dp

    @property
    def replicas(self) -> tuple[int, int]:
        """Ranks that hold the same weights, and ranks that hold the same experts."""
        return self.dp * self.cp, max(1, self.size // (self.ep * self.etp))


@dataclass(frozen=True)
class Side:
    """One side of a boundary."""

    group: int
    """Index of the kind of chip in the machine."""
    degrees: Degrees

    @cached_property
    def _hash(self) -> int:
        return hash((self.group, self.degrees))

    def __hash__(self) -> int:
        """Worked out once: the search looks sides up all the time."""
        return self._hash


class Costs(Protocol):
    """Seconds. ``group`` is the index of a kind of chip in the machine; ``samples`` are those of one rank."""

    @property
    def machine(self) -> Machine:
        """The machine that the costs hold for."""

    def on(self, machine: Machine) -> Costs:
        """The same costs on another machine: what would be if its links, memory or numbers were others."""

    def forward_s(self, group: int, kind: Kind, degrees: Degrees, samples: int) -> float:
        """Forward of one micro-batch through one layer of a kind, its collectives included."""

    def backward_s(self, group: int, kind: Kind, degrees: Degrees, samples: int) -> float:
        """Backward of the same, without recompute."""

    def transfer_s(self, sender: Side, receiver: Side, samples: int) -> float:
        """From one side of a boundary to the other, for ``samples`` of a global micro-batch."""

    def reduction_s(self, group: int, degrees: Degrees, dense: float, experts: float, backward_s: float) -> float:
        """What of the gradients' reduction is left when the last backward pass (``backward_s``) has ended.

        ``dense`` and ``experts`` are parameters of one rank.
        """

    def optimizer_s(self, group: int, degrees: Degrees, dense: float, experts: float) -> float:
        """The optimizer's step, and gathering the weights where its state is sharded."""

    def activation_bytes(self, group: int, kind: Kind, degrees: Degrees, samples: int) -> float | None:
        """Bytes that one layer of a kind saves of a micro-batch for its backward pass, where that was measured."""

    def tell(self, sides: Sequence[Side], samples: int) -> tuple[str, tuple[str, ...]]:
        """Where the numbers for these stages come from, in words, and what was assumed for them.

        ``samples`` are those of a global micro-batch.
        """
