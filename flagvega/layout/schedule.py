"""What the stock 1F1B schedules hold in flight, as arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from flagvega.layout.plan import Boundary


def in_flight(num_stages: int, stage: int, boundaries: Sequence[Boundary], virtual_stages: int = 1) -> int:
    """Micro-batches whose activations ``stage`` holds at most.

    Stages after this one, itself, and one more for every slow boundary after it. Interleaved: pairs of
    (model chunk, micro-batch), warm-up plus the one being run.
    """
    after = num_stages - 1 - stage
    if virtual_stages > 1:
        return 2 * after + (virtual_stages - 1) * num_stages + 1
    return after + 1 + sum(boundary.slow for boundary in boundaries[stage:])
