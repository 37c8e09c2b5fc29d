"""Weights of a HuggingFace folder by megatron-core's global parameter names, read as they are asked for.

megatron-core stacks what HuggingFace keeps apart: ``linear_qkv`` holds, for each query group, its query heads,
then its key, then its value; ``linear_fc1`` of a gated MLP holds the gate and then the up projection.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from backends.megatron.pretrained import read_pretrained
from backends.megatron.vocabulary import read_json
from flagvega.errors import ConfigError, Fault
from flagvega.model.shape import ModelShape


@dataclass(frozen=True)
class Piece:
    """A tensor of the folder."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Stack:
    """A parameter of megatron-core: pieces cut into ``groups``, the first group of each, the second of each, ..."""

    pieces: tuple[Piece, ...]
    groups: int = 1


class HuggingFaceWeights:
    """The full tensors of a Llama- or Qwen-shaped model. Rows that pad the vocabulary are zeros."""

    def __init__(self, folder: Path, padded_vocab_size: int | None = None) -> None:
        self.model = read_pretrained(folder)
        self.num_rows = padded_vocab_size or self.model.shape.vocab
        self._files = _find_tensors(folder)
        self._stacks = stacks(self.model.family, self.model.shape)
        self._open: dict[Path, Any] = {}
        self._check_all_are_known()

    def names(self) -> tuple[str, ...]:
        """Every global name that ``tensor`` knows."""
        return tuple(self._stacks)

    def tensor(self, name: str) -> Tensor:
        """The full tensor of a global name, in the folder's dtype; ConfigError when it is missing or misshapen.

        transformer-engine's fused norms are known by their names too.
        """
        for fused, plain in FUSED_NORMS.items():
            name = name.replace(fused, plain)
        if name not in self._stacks:
            what = f"{self.model.folder} ({self.model.family}) has nothing for {name}"
            raise ConfigError(Fault(what, "load", "the arguments build another model than the folder holds"))
        stack = self._stacks[name]
        parts = [self._read(piece) for piece in stack.pieces]
        cut = [part.view(stack.groups, part.shape[0] // stack.groups, *part.shape[1:]) for part in parts]
        full = torch.cat(cut, dim=1).flatten(0, 1) if len(parts) > 1 else parts[0]
        return self._pad(full) if name in VOCABULARY_ROWS else full

    def _check_all_are_known(self) -> None:
        """A tensor left aside (a bias, an adapter) would make another model without a word."""
        known = {piece.name for stack in self._stacks.values() for piece in stack.pieces} | {"lm_head.weight"}
        unknown = sorted(name for name in self._files if name not in known and not name.endswith("rotary_emb.inv_freq"))
        if unknown:
            what = f"{self.model.folder} has {len(unknown)} tensors with no place in a {self.model.family} model"
            raise ConfigError(Fault(f"{what}: {', '.join(unknown[:4])}", "load"))

    def _pad(self, rows: Tensor) -> Tensor:
        missing = self.num_rows - rows.shape[0]
        if missing < 0:
            what = f"{self.model.folder} has {rows.shape[0]} token ids, more than the {self.num_rows} of this run"
            raise ConfigError(Fault(what, "vocab_size", f"write vocab_size: {rows.shape[0]}"))
        return torch.cat([rows, rows.new_zeros(missing, rows.shape[1])])

    def _read(self, piece: Piece) -> Tensor:
        file = self._files.get(piece.name)
        if file is None:
            raise ConfigError(Fault(f"{self.model.folder} has no tensor {piece.name}", "load"))
        if file not in self._open:
            try:
                self._open[file] = safe_open(file, framework="pt", device="cpu")
            except (OSError, SafetensorError) as error:
                raise ConfigError(Fault(f"cannot read {file}: {error}", "load")) from error
        tensor: Tensor = self._open[file].get_tensor(piece.name)
        if tuple(tensor.shape) != piece.shape:
            what = f"{file}: {piece.name} is {list(tensor.shape)}, config.json says {list(piece.shape)}"
            raise ConfigError(Fault(what, "load"))
        return tensor


VOCABULARY_ROWS = ("embedding.word_embeddings.weight", "output_layer.weight")
FUSED_NORMS = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}
DENSE_NAMES = ("gate_proj", "up_proj", "down_proj")
EXPERT_NAMES = {
    "mixtral": ("block_sparse_moe.gate", "block_sparse_moe.experts", ("w1", "w3", "w2")),
    "qwen2_moe": ("mlp.gate", "mlp.experts", DENSE_NAMES),
    "qwen3_moe": ("mlp.gate", "mlp.experts", DENSE_NAMES),
}
"""By family: the router, the experts, and an expert's gate, up and down projections."""


def stacks(family: str, shape: ModelShape) -> dict[str, Stack]:
    """What every parameter of a model is made of, by global name, in the order of the layers."""
    found = {"embedding.word_embeddings.weight": _one("model.embed_tokens.weight", shape.vocab, shape.hidden)}
    attention, dense = _attention_stacks(shape), _dense_stacks(shape)
    experts = _expert_stacks(family, shape) if shape.experts else {}
    for layer in range(shape.layers):
        for name, stack in (attention | (experts if shape.has_experts(layer) else dense)).items():
            pieces = tuple(Piece(f"model.layers.{layer}.{piece.name}", piece.shape) for piece in stack.pieces)
            found[f"decoder.layers.{layer}.{name}"] = Stack(pieces, stack.groups)
    found["decoder.final_layernorm.weight"] = _one("model.norm.weight", shape.hidden)
    if not shape.tied:
        found["output_layer.weight"] = _one("lm_head.weight", shape.vocab, shape.hidden)
    return found


def unstack(stack: Stack, full: Tensor) -> list[Tensor]:
    """The pieces, in their order, of a parameter that was made of them."""
    cut = full.view(stack.groups, full.shape[0] // stack.groups, *full.shape[1:])
    rows = [piece.shape[0] // stack.groups for piece in stack.pieces]
    return [part.flatten(0, 1) for part in cut.split(rows, dim=1)]


def _attention_stacks(shape: ModelShape) -> dict[str, Stack]:
    widths = {"q_proj": shape.query_width, "k_proj": shape.kv_width, "v_proj": shape.kv_width}

    def qkv(kind: str, *columns: int) -> Stack:
        pieces = (Piece(f"self_attn.{name}.{kind}", (width, *columns)) for name, width in widths.items())
        return Stack(tuple(pieces), groups=shape.kv_heads)

    found = {
        "input_layernorm.weight": _one("input_layernorm.weight", shape.hidden),
        "self_attention.linear_qkv.weight": qkv("weight", shape.hidden),
        "self_attention.linear_proj.weight": _one("self_attn.o_proj.weight", shape.hidden, shape.query_width),
    }
    if shape.qkv_bias:
        found["self_attention.linear_qkv.bias"] = qkv("bias")
    if shape.qk_norm:
        found["self_attention.q_layernorm.weight"] = _one("self_attn.q_norm.weight", shape.head_dim)
        found["self_attention.k_layernorm.weight"] = _one("self_attn.k_norm.weight", shape.head_dim)
    return found


def _dense_stacks(shape: ModelShape) -> dict[str, Stack]:
    return _norm_before_mlp(shape) | _gated("mlp", "mlp", DENSE_NAMES, shape.hidden, shape.ffn)


def _expert_stacks(family: str, shape: ModelShape) -> dict[str, Stack]:
    assert shape.experts is not None
    router, folder, names = EXPERT_NAMES[family]
    found = _norm_before_mlp(shape)
    found["mlp.router.weight"] = _one(f"{router}.weight", shape.experts.num, shape.hidden)
    for i in range(shape.experts.num):
        found |= _gated(f"mlp.experts.{i}", f"{folder}.{i}", names, shape.hidden, shape.experts.ffn)
    if shape.experts.shared_ffn:
        found |= _gated("mlp.shared_experts", "mlp.shared_expert", names, shape.hidden, shape.experts.shared_ffn)
        found["mlp.shared_experts.gate_weight"] = _one("mlp.shared_expert_gate.weight", 1, shape.hidden)
    return found


def _norm_before_mlp(shape: ModelShape) -> dict[str, Stack]:
    return {"pre_mlp_layernorm.weight": _one("post_attention_layernorm.weight", shape.hidden)}


def _gated(ours: str, theirs: str, names: tuple[str, str, str], hidden: int, ffn: int) -> dict[str, Stack]:
    gate, up, down = (f"{theirs}.{name}.weight" for name in names)
    first = Stack((Piece(gate, (ffn, hidden)), Piece(up, (ffn, hidden))))
    return {f"{ours}.linear_fc1.weight": first, f"{ours}.linear_fc2.weight": _one(down, hidden, ffn)}


def _one(name: str, *shape: int) -> Stack:
    return Stack((Piece(name, shape),))


def _find_tensors(folder: Path) -> dict[str, Path]:
    """The file of every tensor, from the index or the files themselves."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        found = {name: folder / Path(file).name for name, file in read_json(index)["weight_map"].items()}
        missing = sorted({file.name for file in found.values() if not file.exists()})
        if missing:
            raise ConfigError(Fault(f"{folder} lacks {', '.join(missing)}", "load", "the index names them"))
        return found
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = [path.name for path in folder.glob("pytorch_model*.bin")]
        fix = "files that hold Python objects are not opened: save as safetensors" if pickled else ""
        raise ConfigError(Fault(f"{folder} has no *.safetensors", "load", fix))
    return {name: file for file in files for name in _tensor_names(file)}


def _tensor_names(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="pt") as tensors:
            return list(tensors.keys())
    except (OSError, SafetensorError) as error:
        raise ConfigError(Fault(f"cannot read {file}: {error}", "load")) from error
