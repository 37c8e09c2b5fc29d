"""How far a run is, in steps and samples; how large each step's batch is. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Position:
    """Where a run is; saved with every checkpoint."""

    step: int = 0
    consumed_samples: int = 0


@dataclass(frozen=True)
class Extent:
    """How long to train, as the arguments say."""

    global_batch_size: int
    train_iters: int | None
    train_samples: int | None
    rampup: tuple[int, int, int] | None
    """Start size, increment, samples over which the size grows."""

    def batch_size(self, consumed: int) -> int:
        """Samples of the step that begins after ``consumed`` samples (Megatron-LM's ramp-up rule)."""
        if self.rampup is None:
            return self.global_batch_size
        start, increment, samples = self.rampup
        if consumed >= samples or start >= self.global_batch_size:
            return self.global_batch_size
        num_increments = (self.global_batch_size - start) // increment
        return min(start + int(consumed / (samples / num_increments)) * increment, self.global_batch_size)

    def is_done(self, step: int, consumed: int) -> bool:
        """Whether nothing is left to train."""
        if self.train_samples is not None:
            return consumed >= self.train_samples
        return step >= (self.train_iters or 0)

    def totals(self) -> tuple[int, int]:
        """Steps and samples of the whole run."""
        if self.train_samples is None and self.rampup is None:
            steps = self.train_iters or 0
            return steps, steps * self.global_batch_size
        step = consumed = 0
        while not self.is_done(step, consumed):
            left = None if self.train_samples is None or consumed < self._ramped else self.train_samples - consumed
            if left is not None:
                more = -(-left // self.global_batch_size)
                return step + more, consumed + more * self.global_batch_size
            consumed += self.batch_size(consumed)
            step += 1
        return step, consumed

    @property
    def _ramped(self) -> int:
        return self.rampup[2] if self.rampup else 0


def read_extent(arguments: Mapping[str, Any]) -> Extent:
    """The extent that engine arguments describe."""
    rampup = arguments["rampup_batch_size"]
    return Extent(
        arguments["global_batch_size"],
        arguments["train_iters"],
        arguments["train_samples"],
        tuple(int(value) for value in rampup) if rampup else None,  # type: ignore[arg-type]
    )
