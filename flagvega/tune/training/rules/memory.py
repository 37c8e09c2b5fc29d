"""What holds at least as much as a stage that ran out of memory runs out of memory too.

A partial order: nothing is said of stages of which each holds more of something.
"""

from __future__ import annotations

from flagvega.tune.training.needs import Need


def check(needs: tuple[Need, ...], failed: Need) -> str | None:
    """A reason, or None."""
    for i, need in enumerate(needs):
        if holds_as_much(need, failed):
            return f"stage {i} holds no less than one that ran out of memory: {failed.words}"
    return None


def holds_as_much(one: Need, other: Need) -> bool:
    """Whether a device of ``one`` needs the memory of a device of ``other`` or more, whatever the model."""
    alike = (one.chip, one.tp, one.cp, one.ep, one.etp, one.sp) == (
        other.chip, other.tp, other.cp, other.ep, other.etp, other.sp,
    )  # fmt: skip
    return (
        alike
        and one.layers >= other.layers
        and one.embedding >= other.embedding
        and one.head >= other.head
        and one.samples >= other.samples
        and one.in_flight >= other.in_flight
        and one.recomputed <= other.recomputed
        and (not one.is_selective or other.is_selective)
        and one.shards <= other.shards
    )
