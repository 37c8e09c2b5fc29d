"""One side of a stage: what it exchanges with the stage before or after it, and how it lands."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from flagvega.comm.outbox import Outbox
from flagvega.comm.reshard import Piece, exchange_pieces
from flagvega.layout.plan import Boundary
from flagvega.layout.ranks import Place
from flagvega.platform import Device

WIRE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Shape:
    """What every activation of a run has in common."""

    sequence: int
    hidden: int
    dtype: torch.dtype
    device: torch.device


class Neighbour:
    """One side of a stage: exchanges micro-batches with the stage before or after it."""

    def __init__(self, me: Place, boundary: Boundary, others: Sequence[Place], shape: Shape, samples: int,
                 tp_group: Any, take_group: Any, give_group: Any, device: Device) -> None:  # fmt: skip
        self.me, self.shape, self.tp_group, self.device = me, shape, tp_group, device
        self.take_group, self.outbox = take_group, Outbox(give_group)
        self.staged = boundary.transport == "bridge" and shape.device.type != "cpu"
        self.chunk_bytes = boundary.chunk_bytes if boundary.transport == "bridge" else 0
        self.wire = WIRE[boundary.wire_dtype] if boundary.wire_dtype else shape.dtype
        self.same_mesh = others[0].mesh.id == me.mesh.id
        self.num_samples = samples // me.mesh.dp
        self.local_sequence = shape.sequence // me.mesh.cp
        self.owned_sequence = self.local_sequence // me.mesh.tp
        if self.same_mesh:
            peer = next(other for other in others if (other.dp, other.cp, other.tp) == (me.dp, me.cp, me.tp))
            rows = self.owned_sequence if me.mesh.sp else self.local_sequence
            self.pieces: tuple[Piece, ...] = (Piece(peer.rank, ((0, rows),), (0, self.num_samples)),)
        else:
            self.pieces = exchange_pieces(me, tuple(others), shape.sequence, samples)
        self.inbox: deque[list[tuple[list[Any], torch.Tensor]]] = deque()
        self.expected = 0
        self.wait_s = 0.0

    def expect(self, num_messages: int, depth: int) -> None:
        """Post receives for the first ``depth`` of the step's messages; each take posts another."""
        self.expected = num_messages
        for _ in range(depth):
            self._post()

    def _post(self) -> None:
        if self.expected == 0:
            return
        self.expected -= 1
        device = torch.device("cpu") if self.staged else self.shape.device
        message = []
        for piece in self.pieces:
            buffer = torch.empty(piece.num_rows, piece.num_samples, self.shape.hidden, dtype=self.wire, device=device)
            works = [dist.irecv(part, piece.peer, group=self.take_group) for part in self._cut(buffer, self.wire)]
            message.append((works, buffer))
        self.inbox.append(message)

    def _cut(self, block: torch.Tensor, wire: torch.dtype) -> Sequence[torch.Tensor]:
        """A block in parts of whole rows that are sent one by one, each at most ``chunk_bytes`` where rows allow."""
        if not self.chunk_bytes or block.numel() == 0:
            return (block,)
        row_bytes = block[0].numel() * wire.itemsize
        parts: Sequence[torch.Tensor] = block.split(max(1, self.chunk_bytes // row_bytes))
        return parts

    def take(self) -> torch.Tensor:
        """The next tensor from this side, as the rank's layers want it."""
        message = self.inbox.popleft()
        begin = time.perf_counter()
        for works, _ in message:
            for work in works:
                work.wait()
        self.wait_s += time.perf_counter() - begin
        self._post()
        if self.same_mesh:
            return self._land(message[0][1])
        rows = torch.empty(self.owned_sequence, self.num_samples, self.shape.hidden, dtype=self.wire,
                           device=message[0][1].device)  # fmt: skip
        for piece, (_, buffer) in zip(self.pieces, message, strict=True):
            offset = 0
            for start, stop in piece.rows:
                rows[start:stop, slice(*piece.samples)] = buffer[offset : offset + stop - start]
                offset += stop - start
        return self._gather(self._land(rows))

    def _land(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.shape.device, self.shape.dtype)

    def _gather(self, rows: torch.Tensor) -> torch.Tensor:
        if self.me.mesh.sp or self.me.mesh.tp == 1:
            return rows
        whole = rows.new_empty(self.local_sequence, self.num_samples, self.shape.hidden)
        dist.all_gather_into_tensor(whole, rows, group=self.tp_group)
        return whole

    def give(self, tensor: torch.Tensor, scale: float = 1.0) -> None:
        """Start sending a tensor of this rank to this side."""
        tensor = tensor.detach()
        if scale != 1.0:
            tensor = tensor * scale
        offset = 0 if self.same_mesh or self.me.mesh.sp else self.me.tp * self.owned_sequence
        for piece in self.pieces:
            parts = [tensor[offset + start : offset + stop, slice(*piece.samples)] for start, stop in piece.rows]
            whole = parts[0] if len(parts) == 1 else torch.cat(parts)
            # A part is on its way while the next one is converted and copied to the host.
            for part in self._cut(whole, self.wire):
                block = part.to("cpu" if self.staged else part.device, self.wire).contiguous()
                duration_s = self.device.duration_s("transfer", 0.0, block.numel() * block.element_size())
                self.outbox.post(block, piece.peer, duration_s)
