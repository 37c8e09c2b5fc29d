"""Bytes that one device of a stage holds, item by item. Arithmetic on the model's shape; nothing is measured.

Activations count what a layer saves for its backward pass (Korthikanti et al., "Reducing Activation
Recomputation in Large Transformer Models", arXiv 2205.05198, without dropout), as the engine's kernels do
(:class:`flagvega.model.workload.Kernels`).
"""

from __future__ import annotations

from collections.abc import Collection
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
        return Held(dense, experts, 2 * entry, 2 * entry, _loss_bytes(work, degrees, tokens))
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


def _loss_bytes(work: Workload, degrees: Degrees, tokens: float) -> float:
    """What the loss needs beside what is saved: logits in fp32 and once more as their softmax, or itself alone.

    Where it overwrites its logits, they are there while the last layer's MLP goes backward.
    """
    shape, size = work.shape, work.element_bytes
    logits = tokens * shape.vocab / degrees.tp
    if not work.kernels.fused:
        return logits * (size + 8)
    gathered = 2 * tokens * shape.hidden if degrees.sp else 0.0
    return size * (logits + tokens * shape.ffn / degrees.tp + gathered)


def pass_bytes(work: Workload, kind: Kind, degrees: Degrees, samples: int) -> float:
    """Bytes that the passes of a part need at once beside what the part saves, which has been measured.

    Of a layer: gradients of the MLP's branches, and of their product, as long as its saved activations are there.
    Of the head: its logits once more in fp32, and as they were before where they were not.
    """
    shape, size = work.shape, work.element_bytes
    tokens = samples * work.seq / degrees.cp
    if kind == "embedding":
        return 0.0
    if kind == "head":
        return (4 if work.dtype == "fp32" else 4 + size) * tokens * shape.vocab / degrees.tp
    branches = 2 if shape.gated else 1
    gradients = branches + 1 if work.kernels.fused else 2 * branches + 1
    if kind == "experts" and shape.experts is not None:
        its = shape.experts
        return size * tokens * gradients * (its.topk * its.ffn / degrees.etp + its.shared_ffn / degrees.tp)
    return size * tokens * gradients * shape.ffn / degrees.tp


def step_bytes(work: Workload, degrees: Degrees, distributed_optimizer: bool) -> float:
    """Bytes that the optimizer's step needs for the weights of the embedding or of the output layer: twice, in fp32.

    Only where a stage has nothing else is that more than what its passes hold.
    """
    replicas = degrees.replicas[0] if distributed_optimizer else 1
    return 8.0 * work.shape.vocab * work.shape.hidden / degrees.tp / replicas


def unused_gradient_bytes(work: Workload, kinds: Collection[Kind], degrees: Degrees) -> float:
    """One unused gradient for every shape of weight, where the kernels fuse adding gradients up and keep them."""
    if not work.kernels.fused:
        return 0.0
    shape, found = work.shape, 0.0
    branches = 2 if shape.gated else 1
    layer = {kind: next(i for i in range(shape.layers) if shape.has_experts(i) == (kind == "experts"))
             for kind in kinds if kind in ("dense", "experts")}  # fmt: skip
    if layer:
        found += layer_parameters(shape, min(layer.values())).attention / degrees.tp
    if "dense" in kinds:
        found += (branches + 1) * shape.hidden * shape.ffn / degrees.tp
    if "experts" in kinds and shape.experts is not None:
        its = shape.experts
        found += (branches + 1) * shape.hidden * (its.ffn / degrees.etp + its.shared_ffn / degrees.tp)
    if "head" in kinds:
        found += shape.vocab * shape.hidden / degrees.tp
    return found * work.element_bytes


def _saved_elements(work: Workload, kind: Kind, degrees: Degrees, sequence_cut: int) -> float:
    """Elements per token that one layer saves on one rank.

    Inputs of both norms and of both column-parallel products are cut over the sequence (where it is), the rest
    over tp: what attention saves and the branches of the MLP.
    """
    shape, fused = work.shape, work.kernels.fused
    branches = 2 if shape.gated else 1
    whole, cut = _saved_by_attention(work, degrees)
    if kind == "dense" or shape.experts is None:
        return (4 * shape.hidden + whole) / sequence_cut + (cut + (branches + 1) * shape.ffn) / degrees.tp
    experts = shape.experts
    routed = experts.topk * (
        (1 if fused else 2) * shape.hidden + (branches + 1) * experts.ffn / degrees.etp * degrees.tp
    )
    shared = (branches + 1) * experts.shared_ffn
    return (4 * shape.hidden + whole) / sequence_cut + (cut + routed + shared) / degrees.tp + experts.num


def _saved_by_attention(work: Workload, degrees: Degrees) -> tuple[float, float]:
    """Elements per token that every rank of tp saves, and that they share: queries, keys, values and the output.

    Rotation, where there is any, keeps what it is given too, unless it is fused. Exchanging heads for sequence keeps
    the output twice.
    """
    shape, kernels = work.shape, work.kernels
    latent = shape.latent
    if latent is None:
        query, key, value, whole = shape.query_width, shape.kv_width, shape.kv_width, 0.0
        output, given = query, query + key + value
    else:
        query = key = shape.heads * (latent.qk_nope_dim + latent.qk_rope_dim)
        value = output = shape.heads * latent.v_dim
        whole = 2.0 * ((latent.q_rank or 0) + latent.kv_rank) + latent.qk_rope_dim
        given = query + shape.heads * (latent.qk_nope_dim + latent.v_dim)
    cut = float(query + key + value + output)
    if kernels.fused:
        cut += output if degrees.cp > 1 else 0.0
    elif not shape.positions:
        cut += given
    if kernels.keeps_scores and not kernels.repeats_attention:
        cut += shape.heads * work.seq
    elif kernels.fused:
        cut += shape.heads * 4 / work.element_bytes
    return whole, cut
