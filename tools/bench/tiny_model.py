"""A model folder for benches of serving on emulated chips, where only the pace matters.

A Llama of two narrow layers, without weights (vLLM makes some up: ``load_format: dummy``), and a tokenizer for which
each word ``w<i>`` is one token, so that ``"w7 w8 w9"`` are three. ``python tools/bench/tiny_model.py FOLDER``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from flagvega.records import write_json

VOCABULARY: Final = 512
MAX_TOKENS: Final = 4096
"""Of prompt and answer."""
ENGINE_ARGS: Final = {"load_format": "dummy", "dtype": "float32"}
"""Arguments of vLLM that the folder needs."""

_CONFIG: Final = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_TOKENS,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,  # answers end at their length
    "torch_dtype": "float32",
}


def word(token: int) -> str:
    """The text of a token."""
    return f"w{token}"


def make_tiny_model(folder: Path) -> Path:
    """Write the folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", _CONFIG)
    write_json(folder / "tokenizer.json", _tokenizer())
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    return folder


def _tokenizer() -> dict[str, Any]:
    vocabulary = {word(token): token for token in range(VOCABULARY)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": word(0)},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    make_tiny_model(parser.parse_args().folder)
