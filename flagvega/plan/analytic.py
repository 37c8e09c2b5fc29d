"""Costs from data sheets: matrix products and bytes against a chip's peak, messages against links.

Nothing here has been measured on the chip at hand. Assumptions: a chip sustains a share of its dense peak
(fitted to published runs, :mod:`flagvega.plan.calibration`), less with narrow matrices; a collective is a ring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from flagvega.model.pieces import Piece, Rank, embedding_pieces, head_pieces, layer_pieces
from flagvega.model.workload import Workload
from flagvega.plan.calibration import Calibration, calibration
from flagvega.plan.costs import Degrees, Kind, Side
from flagvega.plan.machine import Link, Machine

OPTIMIZER_BYTES = 28.0
"""Adam reads and writes weight, gradient and two moments in fp32."""
GRADIENT_PASSES = 2.0
"""Over all gradients of a rank: one sets them to zero, one takes their norm."""
HIDDEN_REDUCTION = 0.8
"""Share of the last backward pass behind which an overlapped reduction hides."""


@dataclass
class AnalyticCosts:
    """Implements :class:`flagvega.plan.costs.Costs`."""

    work: Workload
    machine: Machine
    distributed_optimizer: bool
    constants: Calibration = field(default_factory=calibration)
    notes: tuple[str, ...] = ()
    """What :meth:`tell` adds."""
    _layers: dict[Kind, int] = field(init=False)

    def __post_init__(self) -> None:
        shape = self.work.shape
        kinds: dict[bool, int] = {}
        for layer in range(shape.layers):
            kinds.setdefault(shape.has_experts(layer), layer)
        self._layers = {("experts" if has_experts else "dense"): layer for has_experts, layer in kinds.items()}

    def forward_s(self, group: int, kind: Kind, degrees: Degrees, samples: int) -> float:
        """Products, passes over memory, and the collectives that wait for them."""
        computing_s = self.constants.launch_s + sum(
            self._piece_s(group, piece) for piece in self._pieces(kind, degrees, samples)
        )
        return computing_s + self._collectives_s(group, kind, degrees, samples)

    def backward_s(self, group: int, kind: Kind, degrees: Degrees, samples: int) -> float:
        """Twice the products, of attention more, and the collectives once more."""
        computing_s = 2 * self.constants.launch_s + sum(
            piece.backward * self._piece_s(group, piece) for piece in self._pieces(kind, degrees, samples)
        )
        return computing_s + self._collectives_s(group, kind, degrees, samples)

    def transfer_s(self, sender: Side, receiver: Side, samples: int) -> float:
        """The busier side's bytes over the slower link."""
        total = samples * self.work.seq * self.work.shape.hidden * self.work.element_bytes
        if sender == receiver:
            degrees, group = sender.degrees, self.machine.groups[sender.group]
            shards = degrees.dp * degrees.cp * (degrees.tp if degrees.sp else 1)
            link = group.link if 2 * degrees.size <= group.node_size else group.network
            return link.duration_s(total / shards)
        if sender.group == receiver.group:
            group = self.machine.groups[sender.group]
            fits = sender.degrees.size + receiver.degrees.size <= group.node_size
            link = group.link if fits else group.network
        else:
            link = self.machine.link_between(sender.group, receiver.group)
        return link.duration_s(total / min(sender.degrees.size, receiver.degrees.size))

    def reduction_s(self, group: int, degrees: Degrees, dense: float, experts: float, backward_s: float) -> float:
        """A ring over the replicas; where overlapped, less what hides."""
        replicas, expert_replicas = degrees.replicas
        link = self._replica_link(group, degrees)
        total_s = self._reduce_s(link, dense, replicas) + self._reduce_s(link, experts, expert_replicas)
        hidden_s = HIDDEN_REDUCTION * backward_s if self.work.overlap_reduction else 0.0
        return max(0.0, total_s - hidden_s)

    def optimizer_s(self, group: int, degrees: Degrees, dense: float, experts: float) -> float:
        """Bound by memory bandwidth; a sharded one gathers the new weights."""
        sharded = self.distributed_optimizer
        replicas, expert_replicas = degrees.replicas if sharded else (1, 1)
        passed = OPTIMIZER_BYTES * (dense / replicas + experts / expert_replicas)
        passed += GRADIENT_PASSES * self.work.gradient_bytes * (dense + experts)
        updating_s = passed / (self.constants.memory_share * self.machine.groups[group].memory_bytes_per_s)
        return updating_s + self.gathering_s(group, degrees, dense, experts)

    def gathering_s(self, group: int, degrees: Degrees, dense: float, experts: float) -> float:
        """Gathering the new weights of a sharded optimizer; nothing where it is not."""
        if not self.distributed_optimizer:
            return 0.0
        replicas, expert_replicas = degrees.replicas
        link, size = self._replica_link(group, degrees), self.work.element_bytes
        total_s = _ring_s(link, dense * size, replicas) + _ring_s(link, experts * size, expert_replicas)
        return total_s / self.constants.link_share

    def on(self, machine: Machine) -> AnalyticCosts:
        """The same constants on another machine."""
        return replace(self, machine=machine)

    def activation_bytes(self, group: int, kind: Kind, degrees: Degrees, samples: int) -> float | None:
        """Nothing is measured."""
        return None

    def tell(self, sides: Sequence[Side], samples: int) -> tuple[str, tuple[str, ...]]:
        """The constants, and how far off they may be."""
        chips = (self.machine.groups[side.group].chip for side in sides)
        return self.constants.describe(chips, self.work.dtype), self.notes

    def _reduce_s(self, link: Link, parameters: float, replicas: int) -> float:
        """All-reduce, or reduce-scatter where the optimizer is sharded and gathers later."""
        once_s = _ring_s(link, parameters * self.work.gradient_bytes, replicas)
        return (once_s if self.distributed_optimizer else 2 * once_s) / self.constants.link_share

    def _replica_link(self, group: int, degrees: Degrees) -> Link:
        """Over several nodes each of ``tp`` rings has its share of all network ports of a node."""
        its = self.machine.groups[group]
        if degrees.size <= its.node_size:
            return its.link
        ports = max(1, its.node_size // degrees.tp)
        return Link(its.network.latency_s, min(its.link.bytes_per_s, ports * its.network.bytes_per_s))

    def _exchange_s(self, group: int, degrees: Degrees, num_bytes: float) -> float:
        """All to all among ranks that share experts; they are neighbours, each with its own network port."""
        its = self.machine.groups[group]
        near = min(degrees.ep, max(1, its.node_size // degrees.tp))
        within_s = its.link.duration_s(num_bytes * (near - 1) / degrees.ep)
        if near == degrees.ep:
            return within_s
        return max(within_s, its.network.duration_s(num_bytes * (degrees.ep - near) / degrees.ep))

    def _pieces(self, kind: Kind, degrees: Degrees, samples: int) -> list[Piece]:
        work, shape = self.work, self.work.shape
        cut = degrees.tp if degrees.sp else 1
        rank = Rank(samples * work.seq / degrees.cp, degrees.tp, degrees.ep, degrees.etp, cut)
        if kind == "embedding":
            return embedding_pieces(shape, rank, work.element_bytes)
        if kind == "head":
            return head_pieces(shape, rank, work.kernels, work.element_bytes)
        return layer_pieces(shape, self._layers[kind], work.seq, rank, work.kernels, work.element_bytes)

    def _piece_s(self, group: int, piece: Piece) -> float:
        """Forward of one piece: the longer of its products and reading its weights, then its passes over memory."""
        its, constants = self.machine.groups[group], self.constants
        half_width = constants.expert_half_width if piece.kind == "experts" else constants.half_width
        rate = constants.efficiency_of(its.chip, self.work.dtype) / (1 + half_width / piece.width)
        if piece.kind == "attention":
            rate *= constants.attention_of(its.chip, self.work.dtype)
        products_s = piece.flops / (its.flops_per_s * rate)
        return max(products_s, piece.operand_bytes / its.memory_bytes_per_s) + (
            piece.passed_bytes / (constants.memory_share * its.memory_bytes_per_s)
        )

    def _collectives_s(self, group: int, kind: Kind, degrees: Degrees, samples: int) -> float:
        """Of one pass through one layer: tp gathers and scatters twice, cp passes keys on, ep sends tokens around."""
        if kind not in ("dense", "experts"):
            return 0.0
        shape, link = self.work.shape, self.machine.groups[group].link
        tokens = samples * self.work.seq / degrees.cp
        size = self.work.element_bytes
        total_s = 0.0
        if degrees.tp > 1:
            total_s += 4 * _ring_s(link, tokens * shape.hidden * size, degrees.tp)
        if degrees.cp > 1:
            total_s += (degrees.cp - 1) * link.duration_s(2 * tokens * shape.kv_width / degrees.tp * size)
        if kind == "experts" and degrees.ep > 1 and shape.experts is not None:
            sent = tokens / degrees.tp * shape.experts.topk * shape.hidden * size
            total_s += 2 * self._exchange_s(group, degrees, sent)
        return total_s / self.constants.link_share


def _ring_s(link: Link, num_bytes: float, ranks: int) -> float:
    """Reduce-scatter or all-gather of a tensor of ``num_bytes``."""
    if ranks <= 1 or num_bytes == 0:
        return 0.0
    return (ranks - 1) * link.latency_s + num_bytes * (ranks - 1) / ranks / link.bytes_per_s
