"""Measured costs as data: what a probe, or somebody else's tool, found out about chips and links.

Times are seconds; ``micro_batch`` is the samples of one rank. :mod:`flagvega.plan.tables` reads and writes the files.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from flagvega.model.shape import ModelShape
from flagvega.model.workload import Workload
from flagvega.plan.costs import Kind

SCHEMA = 1
KINDS: tuple[Kind, ...] = ("embedding", "dense", "experts", "head")
BACKWARD_SHARE = 2 / 3
"""Of the sum of both passes, where only the sum is known: backward computes twice the products."""


@dataclass(frozen=True)
class LayerRow:
    """One part of the model on one rank. Exactly one of ``kind`` and ``layer`` is given."""

    chip: str
    tp: int
    micro_batch: int
    forward_s: float
    backward_s: float
    kind: Kind | None = None
    layer: int | None = None
    """Number of a decoder layer, from 0."""
    cp: int = 1
    ep: int = 1
    sp: bool = False
    activation_bytes: float | None = None
    """Saved of one micro-batch for the backward pass."""
    parameter_bytes: float | None = None
    """Of the weights."""
    is_split: bool = False
    """Only the sum of the passes was given; it is split 1 : 2."""


@dataclass(frozen=True)
class OptimizerRow:
    """The optimizer's step for a number of parameters of one rank."""

    chip: str
    parameters: float
    seconds: float


@dataclass(frozen=True)
class LinkRow:
    """Messages from device to device, one at a time, either way."""

    chip: str
    other: str
    latency_s: float
    bytes_per_s: float
    hosts: int = 1
    """2: the devices are on different hosts."""


@dataclass(frozen=True)
class CollectiveRow:
    """A ring among devices of one kind: a step of it takes ``latency_s`` and moves ``bytes_per_s``."""

    chip: str
    ranks: int
    latency_s: float
    bytes_per_s: float
    hosts: int = 1


@dataclass(frozen=True)
class OverheadRow:
    """What a step costs beside the parts of the model and the optimizer: ranks tell each other norm and loss."""

    chip: str
    step_s: float


@dataclass(frozen=True)
class Validity:
    """For what the numbers hold; empty: nobody says, and it is not checked."""

    model: str = ""
    """See :func:`model_key`."""
    seq: int | None = None
    dtype: str = ""
    engine: str = ""
    date: str = ""


@dataclass(frozen=True)
class Profile:
    """Measured costs."""

    layers: tuple[LayerRow, ...] = ()
    optimizer: tuple[OptimizerRow, ...] = ()
    links: tuple[LinkRow, ...] = ()
    collectives: tuple[CollectiveRow, ...] = ()
    overheads: tuple[OverheadRow, ...] = ()
    valid: Validity = Validity()

    @property
    def chips(self) -> tuple[str, ...]:
        """Kinds of chips whose layers were measured."""
        return tuple(dict.fromkeys(row.chip for row in self.layers))


def model_key(shape: ModelShape) -> str:
    """What of a model its layers' costs depend on, in words: not the number of layers."""
    values: dict[str, Any] = {field.name: getattr(shape, field.name) for field in fields(shape)}
    for name in ("layers", "experts", "latent"):
        del values[name]
    for prefix, part in (("experts", shape.experts), ("latent", shape.latent)):
        for field in fields(part) if part is not None else ():
            if field.name != "layers":
                values[f"{prefix}.{field.name}"] = getattr(part, field.name)
    return " ".join(f"{name}={value}" for name, value in values.items())


def validity_of(work: Workload, engine: str = "", date: str = "") -> Validity:
    """For what costs of a workload hold."""
    return Validity(model_key(work.shape), work.seq, work.dtype, engine, date)


def misfits(valid: Validity, work: Workload) -> list[str]:
    """Why numbers do not hold for a workload, one reason each."""
    found = []
    if valid.model and valid.model != (wanted := model_key(work.shape)):
        theirs, ours = set(valid.model.split()), wanted.split()
        differing = [part for part in ours if part not in theirs]
        names = {part.partition("=")[0] for part in differing}
        measured = [part for part in valid.model.split() if part.partition("=")[0] in names]
        found.append(
            f"it was measured with {', '.join(measured) or 'another model'}; the model has {', '.join(differing)}"
        )
    if valid.seq is not None and valid.seq != work.seq:
        found.append(f"it was measured with sequences of {valid.seq} tokens; the model has {work.seq}")
    if valid.dtype and valid.dtype != work.dtype:
        found.append(f"it was measured in {valid.dtype}; the model is trained in {work.dtype}")
    return found
