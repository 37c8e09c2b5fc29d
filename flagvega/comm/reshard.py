"""Which piece of an activation each rank of one mesh sends to each rank of the next. Pure.

An activation of a global micro-batch is ``[sequence, samples, hidden]``. A rank (dp, cp, tp) holds a
block of samples and, of the sequence, two runs of its cp rank (the causal zigzag of context
parallelism); with sequence parallelism its tp rank holds a tp-th of these. Without it the block is
replicated over tp: each tp rank then *sends* only its tp-th, so that every element crosses the
boundary once, and the receiver gathers inside its own tp group.
"""

from __future__ import annotations

from dataclasses import dataclass

from flagvega.layout.plan import Mesh
from flagvega.layout.ranks import Place

Interval = tuple[int, int]


@dataclass(frozen=True)
class Piece:
    """Rows (offsets into the owner's rows) and samples (offsets into its samples) for one peer."""

    peer: int
    rows: tuple[Interval, ...]
    samples: Interval

    @property
    def num_rows(self) -> int:
        """Sequence positions of the piece."""
        return sum(stop - start for start, stop in self.rows)

    @property
    def num_samples(self) -> int:
        """Samples of the piece."""
        return self.samples[1] - self.samples[0]


def sequence_runs(sequence: int, cp: int, cp_rank: int) -> tuple[Interval, ...]:
    """Global positions of a cp rank in its local order: chunk r and chunk 2 * cp - 1 - r of 2 * cp."""
    if cp == 1:
        return ((0, sequence),)
    size = sequence // (2 * cp)
    return tuple((i * size, (i + 1) * size) for i in (cp_rank, 2 * cp - 1 - cp_rank))


def owned_rows(place: Place, sequence: int) -> tuple[Interval, ...]:
    """Global positions that a rank sends or receives over a boundary, in its local order."""
    runs = sequence_runs(sequence, place.mesh.cp, place.cp)
    size = sequence // (place.mesh.cp * place.mesh.tp)
    first, last = place.tp * size, (place.tp + 1) * size
    owned, offset = [], 0
    for start, stop in runs:
        low, high = max(first, offset), min(last, offset + stop - start)
        if low < high:
            owned.append((start + low - offset, start + high - offset))
        offset += stop - start
    return tuple(owned)


def owned_samples(mesh: Mesh, dp_rank: int, samples: int) -> Interval:
    """The samples of a global micro-batch that a dp rank holds."""
    size = samples // mesh.dp
    return dp_rank * size, (dp_rank + 1) * size


def exchange_pieces(me: Place, others: tuple[Place, ...], sequence: int, samples: int) -> tuple[Piece, ...]:
    """The pieces that ``me`` exchanges with each rank of the neighbouring stage, in rank order.

    Offsets are relative to what ``me`` owns; sender and receiver list the same positions in the
    same order: ascending global position.
    """
    my_rows, my_samples = owned_rows(me, sequence), owned_samples(me.mesh, me.dp, samples)
    pieces = []
    for other in others:
        their_samples = owned_samples(other.mesh, other.dp, samples)
        low, high = max(my_samples[0], their_samples[0]), min(my_samples[1], their_samples[1])
        rows = _overlaps(my_rows, owned_rows(other, sequence))
        if low < high and rows:
            pieces.append(Piece(other.rank, rows, (low - my_samples[0], high - my_samples[0])))
    return tuple(pieces)


def _overlaps(mine: tuple[Interval, ...], theirs: tuple[Interval, ...]) -> tuple[Interval, ...]:
    found = []
    offset = 0
    for start, stop in mine:
        for other_start, other_stop in theirs:
            low, high = max(start, other_start), min(stop, other_stop)
            if low < high:
                found.append((low, (offset + low - start, offset + high - start)))
        offset += stop - start
    return tuple(local for _, local in sorted(found))
