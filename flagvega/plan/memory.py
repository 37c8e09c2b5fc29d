"""Bytes that one device of a stage holds, item by item. Arithmetic on the model's shape; nothing is measured.

Activations count what a layer saves for its backward pass with an attention that keeps no scores
(Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models", arXiv 2205.05198,
without the terms of dropout and softmax).
"""

from __future__ import annotations

from dataclasses import dataclass

from flagvega.model.parameters import layer_parameters
from flagvega.model.workload import Workload
from flagvega.plan.costs import Degrees, Kind

CONTEXT_SHARE = 0.04
"""Share of a device's memory that its runtime, collectives and fragmentation take."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one device, by what holds them."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    """Of all micro-batches in flight."""
    workspace: float
    """The most that one pass needs beside these: logits and loss, or a layer that is computed again."""
    context: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.workspace + self.context


@dataclass(frozen=True)
class Held:
    """What one layer of a kind (or the embedding, or the head) holds on one rank."""

    dense: float
    """Parameters, of experts not."""
    experts: float
    activation: float
    """Bytes saved of one micro-batch."""
    entry: float
    """Bytes saved of one micro-batch when the layer is computed again: its input."""
    workspace: float = 0.0


def held(work: Workload, kind: Kind, degrees: Degrees, samples: int) -> Held:
    """What a part of the model holds; ``samples`` of one rank."""
    dense, experts = rank_parameters(work, kind, degrees)
    tokens = samples * work.seq / degrees.cp
    sequence_cut = degrees.tp if degrees.sp else 1
    entry = tokens * work.shape.hidden * work.element_bytes / sequence_cut
    if kind == "embedding":
        return Held(dense, experts, 0.0, 0.0)
    if kind == "head":
        logits = tokens * work.shape.vocab / degrees.tp
        return Held(dense, experts, 2 * entry, 2 * entry, logits * (work.element_bytes + 8))
    activation = tokens * _saved_elements(work, kind, degrees, sequence_cut) * work.element_bytes
    return Held(dense, experts, activation, entry)


def rank_parameters(work: Workload, kind: Kind, degrees: Degrees) -> tuple[float, float]:
    """(dense, experts): parameters that one rank holds of a part; a tied head is counted, for it may be a copy."""
    shape = work.shape
    if kind == "embedding":
        return (shape.vocab / degrees.tp + shape.positions) * shape.hidden, 0.0
    if kind == "head":
        return shape.vocab * shape.hidden / degrees.tp + shape.hidden, 0.0
    layer = next(i for i in range(shape.layers) if shape.has_experts(i) == (kind == "experts"))
    parts = layer_parameters(shape, layer)
    dense = (parts.attention + parts.mlp) / degrees.tp + parts.router + parts.norms
    return dense, parts.experts / (degrees.ep * degrees.etp)


def parameter_bytes(work: Workload, degrees: Degrees, dense: float, experts: float,
                    distributed_optimizer: bool) -> tuple[float, float, float]:  # fmt: skip
    """Bytes of weights, gradients and optimizer state for parameters of one rank."""
    total = dense + experts
    state = total
    if distributed_optimizer:
        replicas, expert_replicas = degrees.replicas
        state = dense / replicas + experts / expert_replicas
    return total * work.element_bytes, total * work.gradient_bytes, state * work.optimizer_bytes


def _saved_elements(work: Workload, kind: Kind, degrees: Degrees, sequence_cut: int) -> float:
    """Elements per token that one layer saves on one rank.

    Inputs of both norms and of both column-parallel products are cut over the sequence (where it is), the rest
    over tp: queries, keys and values before and after rotation, the attention's output, the branches of the MLP.
    """
    shape = work.shape
    branches = 2 if shape.gated else 1
    attention = 3 * shape.query_width + 4 * shape.kv_width
    if kind == "dense" or shape.experts is None:
        inner = attention + (branches + 1) * shape.ffn
        return 4 * shape.hidden / sequence_cut + inner / degrees.tp
    experts = shape.experts
    routed = experts.topk * (2 * shape.hidden + (branches + 1) * experts.ffn / degrees.etp * degrees.tp)
    shared = (branches + 1) * experts.shared_ffn
    return (4 * shape.hidden) / sequence_cut + (attention + routed + shared) / degrees.tp + experts.num
