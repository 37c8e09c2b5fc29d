"""The tokenizer that goes with a model, written as HuggingFace's tools expect it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from backends.megatron.tokenizer import FastTokenizer, open_tokenizer
from backends.megatron.vocabulary import read_json, tokenizer_path, tokenizer_type
from flagvega.errors import ConfigError
from flagvega.records import write_json

FILES: Final = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""What a tokenizer's folder may hold."""


def write_tokenizer(arguments: Mapping[str, Any], folder: Path) -> str:
    """Put the run's tokenizer into ``folder``; why there is none, or nothing."""
    name = arguments.get("tokenizer_type")
    kind = "null" if name is None else tokenizer_type(str(name)).kind
    if kind == "null":
        return "the run reads numbers, so the folder has no tokenizer"
    try:
        tokenizer = open_tokenizer(arguments)
    except ConfigError as error:
        return f"the folder has no tokenizer: {error.faults[0].what}"
    if kind == "bytes":
        _byte_tokenizer().save(folder / "tokenizer.json")
    elif kind == "gpt2":
        assert isinstance(tokenizer, FastTokenizer)
        tokenizer.save(folder / "tokenizer.json")
    else:
        _copy(tokenizer_path(arguments), folder, "tokenizer.json" if kind == "huggingface" else "tokenizer.model")
    if not (folder / "tokenizer_config.json").exists():
        write_json(folder / "tokenizer_config.json", _config(arguments, folder, tokenizer.vocabulary.eod))
    return ""


def _copy(source: Path, folder: Path, main: str) -> None:
    """A tokenizer's folder, or one file of it with what lies beside."""
    beside = source if source.is_dir() else source.parent
    for name in FILES if source.is_dir() or source.name in FILES else ():
        if (beside / name).is_file():
            shutil.copyfile(beside / name, folder / name)
    if not source.is_dir():
        shutil.copyfile(source, folder / main)


def _config(arguments: Mapping[str, Any], folder: Path, eod: int | None) -> dict[str, Any]:
    fast = (folder / "tokenizer.json").exists()
    found: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast" if fast else "LlamaTokenizer",
        "model_max_length": arguments["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
    }
    return found | ({"eos_token": _token(folder, eod)} if fast and eod is not None else {})


def _token(folder: Path, number: int) -> str | None:
    """The text of a token by its id."""
    content = read_json(folder / "tokenizer.json")
    added = {int(token["id"]): str(token["content"]) for token in content.get("added_tokens") or ()}
    vocab = content["model"]["vocab"]
    ids = {i: text for text, i in vocab.items()} if isinstance(vocab, dict) else {i: p[0] for i, p in enumerate(vocab)}
    return added.get(number) or ids.get(number)


def _byte_tokenizer() -> FastTokenizer:
    """Every byte is a token, in the bytes' own order; the token behind them ends a document."""
    from tokenizers import Tokenizer
    from tokenizers.decoders import ByteLevel as Decoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    from backends.megatron.tokenizer import ByteTokenizer

    inner = Tokenizer(BPE({character: byte for byte, character in enumerate(_byte_characters())}, []))
    inner.pre_tokenizer, inner.decoder = ByteLevel(add_prefix_space=False, use_regex=False), Decoder()
    inner.add_special_tokens(["<|endoftext|>"])
    return FastTokenizer(inner, ByteTokenizer.vocabulary)


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte in byte-level BPE (GPT-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("\xa1"), ord("\xac") + 1), *range(ord("\xae"), 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]
