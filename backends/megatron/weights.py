"""Initial weights that depend on (seed, global name, index) only, sliced by the layout.

Every row of every matrix has its own counter-based random stream, so a rank makes just the rows it
holds: no layout, and no order of construction, can change a value.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flagvega.layout.ranks import Place

Reader = Callable[[str], Tensor]
"""Full tensor by global name: what a checkpoint of another form offers."""


@dataclass(frozen=True)
class Shard:
    """A local parameter as a part of a global one."""

    name: str
    parameter: torch.nn.Parameter
    dim: int | None
    """Dimension that is cut; None when every rank holds the whole."""
    index: int
    count: int
    gated: bool
    """Two stacked matrices (gate and up) that are cut one by one."""

    def rows(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Global indices, along ``dim`` or dimension 0, of the local entries."""
        if self.dim is None:
            return np.arange(self.parameter.shape[0])
        size = self.parameter.shape[self.dim]
        if not self.gated:
            return np.arange(size) + self.index * size
        half = size // 2
        part = np.arange(half) + self.index * half
        return np.concatenate([part, part + half * self.count])


def find_shards(model: torch.nn.Module, me: Place, num_experts: int | None) -> list[Shard]:
    """All parameters of a model chunk (GPTModel, unwrapped) with their global names."""
    numbers = {
        name: module.layer_number - 1
        for name, module in model.named_modules()
        if re.fullmatch(r"decoder\.layers\.\d+", name)
    }
    shards = []
    for name, parameter in model.named_parameters():
        local = re.match(r"decoder\.layers\.\d+", name)
        if local:
            name = f"decoder.layers.{numbers[local[0]]}" + name[local.end() :]
        expert = re.search(r"local_experts\.(\d+)\.", name)
        index, count = me.tp, me.mesh.tp
        if expert and num_experts:
            position = (me.dp * me.mesh.cp + me.cp) * me.mesh.tp + me.tp
            index, count = position % me.mesh.etp, me.mesh.etp
            first = position // me.mesh.etp % me.mesh.ep * (num_experts // me.mesh.ep)
            name = name.replace(expert[0], f"experts.{first + int(expert[1])}.").replace("experts.experts.", "experts.")
        is_cut = getattr(parameter, "tensor_model_parallel", False) and count > 1
        dim = parameter.partition_dim if is_cut else None  # type: ignore[attr-defined]
        gated = "linear_fc1" in name and model.config.gated_linear_unit  # type: ignore[union-attr]
        if name == "output_layer.weight" and model.share_embeddings_and_output_weights:
            name = "embedding.word_embeddings.weight"
        shards.append(
            Shard(name, parameter, dim, index if is_cut else 0, count if is_cut else 1, bool(gated and is_cut))
        )
    return shards


@dataclass(frozen=True)
class Scheme:
    """How weights are drawn."""

    seed: int
    std: float
    num_layers: int
    norm_weight: float | None = None


@torch.no_grad()
def draw_weights(shards: list[Shard], scheme: Scheme) -> None:
    """Megatron-LM's initialisation: normal(std), projections back into the residual normal(std / sqrt(2 layers))."""
    for shard in shards:
        values = _draw(shard, scheme)
        if values is not None:
            shard.parameter.copy_(values)


@torch.no_grad()
def read_weights(shards: list[Shard], read: Reader) -> None:
    """Take every parameter from full tensors by global name."""
    for shard in shards:
        full = read(shard.name)
        part = full if shard.dim is None else full.index_select(shard.dim, torch.from_numpy(shard.rows()))
        shard.parameter.copy_(part)


def _draw(shard: Shard, scheme: Scheme) -> Tensor | None:
    name, shape = shard.name, tuple(shard.parameter.shape)
    if "norm" in name:
        if name.endswith("weight") and scheme.norm_weight is not None:
            return torch.full(shape, scheme.norm_weight)
        return None  # the module's own ones and zeros
    if len(shape) < 2:
        return torch.zeros(shape)
    std = scheme.std
    if name.endswith(("linear_proj.weight", "linear_fc2.weight")):
        std /= (2.0 * scheme.num_layers) ** 0.5
    key = np.frombuffer(hashlib.sha256(f"{scheme.seed}/{name}".encode()).digest()[:16], dtype=np.uint64)
    if shard.dim in (None, 0):
        drawn = np.stack([_draw_row(key, row, shape[1]) for row in shard.rows()])
    else:
        columns, width = shard.rows(), shape[1] * shard.count
        drawn = np.stack([_draw_row(key, row, width)[columns] for row in range(shape[0])])
    return torch.from_numpy(drawn) * std


def _draw_row(key: Any, row: int, width: int) -> Any:
    """Standard normal numbers of one row, from Philox at a counter of its own (Salmon et al., SC'11)."""
    generator = np.random.Generator(np.random.Philox(counter=[0, 0, int(row), 0], key=key))
    return generator.standard_normal(width, dtype=np.float32)
