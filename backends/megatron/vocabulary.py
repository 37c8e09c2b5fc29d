"""How many token ids there are and which ends a document: read from files, without a tokenizer library."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flagvega.errors import ConfigError, Fault

Kind = Literal["null", "bytes", "huggingface", "gpt2", "sentencepiece"]

EOD_TOKENS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<|im_end|>", "<eos>")
"""Names of the token that ends a document, for files that do not say which it is."""


@dataclass(frozen=True)
class TokenizerType:
    """A value of ``tokenizer_type``."""

    kind: Kind
    eod: str | None = None
    """The token that ends a document, where the type fixes it."""


TOKENIZER_TYPES: Mapping[str, TokenizerType] = {
    "NullTokenizer": TokenizerType("null"),
    "ByteLevel": TokenizerType("bytes"),
    "HuggingFaceTokenizer": TokenizerType("huggingface"),
    "SentencePieceTokenizer": TokenizerType("sentencepiece"),
    "GPTSentencePieceTokenizer": TokenizerType("sentencepiece"),
    "Llama2Tokenizer": TokenizerType("sentencepiece"),
    "GPT2BPETokenizer": TokenizerType("gpt2", "<|endoftext|>"),
    "AquilaTokenizerFS": TokenizerType("gpt2", "</s>"),
    "HFTokenizerFS": TokenizerType("huggingface"),
    "HFTokenizersTokenizerFS": TokenizerType("huggingface", "<|endoftext|>"),
    "Llama3TokenizerFS": TokenizerType("huggingface"),
    "QwenTokenizerFS": TokenizerType("huggingface", "<|extra_204|>"),
    "Qwen2TokenizerFS": TokenizerType("huggingface", "<|extra_204|>"),
}

UNSUPPORTED_TYPES: Mapping[str, str] = {
    "BertWordPieceLowerCase": "BERT is not trained here",
    "BertWordPieceCase": "BERT is not trained here",
    "TikTokenizer": "save the tokenizer as a HuggingFace tokenizer.json and write HuggingFaceTokenizer",
    "MultimodalTokenizer": "only text models are trained here",
    "Qwen2VLTokenizer": "only text models are trained here",
    "BagelTokenizerFS": "only text models are trained here",
    "RWKVTokenizerFS": "save the tokenizer as a HuggingFace tokenizer.json and write HuggingFaceTokenizer",
    "SFTTokenizer": "prepare the data with tools/prepare_data.py --sft and write HuggingFaceTokenizer",
}


@dataclass(frozen=True)
class Vocabulary:
    """What training needs to know of a tokenizer."""

    size: int
    """All ids are below it."""
    eod: int | None
    """The id that ends a document; None: there is none."""
    source: str
    """Where it was read, for messages and cache keys."""


def vocab_size(arguments: Mapping[str, Any]) -> int:
    """The model's vocabulary before padding; ConfigError when neither tokenizer nor ``vocab_size`` tells."""
    return read_vocabulary(arguments).size


def padded_vocab_size(arguments: Mapping[str, Any]) -> int:
    """The vocabulary rounded up to ``make_vocab_size_divisible_by``, whatever the tensor parallelism."""
    multiple = int(arguments.get("make_vocab_size_divisible_by") or 128)
    return -(-vocab_size(arguments) // multiple) * multiple


def read_vocabulary(arguments: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary that engine arguments ask for; ConfigError with the fault and its remedy.

    An explicit ``vocab_size`` may exceed the tokenizer's (checkpoints often have spare rows), never undercut it.
    With it the tokenizer's files need not be here, since training reads ids: then no id is known to end a document.
    """
    name, size = arguments.get("tokenizer_type"), arguments.get("vocab_size")
    if name is None:
        return _bare_vocabulary(size)
    kind = tokenizer_type(str(name)).kind
    if kind == "null":
        if size is None:
            raise ConfigError(Fault("NullTokenizer needs vocab_size", "tokenizer_type", "give vocab_size"))
        return Vocabulary(int(size) + 1, int(size), "NullTokenizer")
    if size is not None and not _has_files(arguments, kind):
        return _bare_vocabulary(size)
    if kind == "bytes":
        found = Vocabulary(257, 256, "ByteLevel")
    elif kind == "huggingface":
        found = read_huggingface(tokenizer_path(arguments), tokenizer_type(str(name)).eod)
    elif kind == "gpt2":
        found = _read_gpt2(tokenizer_file(arguments, "vocab_file"), tokenizer_type(str(name)).eod)
    else:
        found = read_sentencepiece(tokenizer_path(arguments))
    return found if size is None else _with_size(found, int(size))


def tokenizer_type(name: str) -> TokenizerType:
    """What is known of a ``tokenizer_type``; ConfigError for an unknown one or one we do not support."""
    if name in TOKENIZER_TYPES:
        return TOKENIZER_TYPES[name]
    if name in UNSUPPORTED_TYPES:
        raise ConfigError(Fault(f"tokenizer {name} is not supported", "tokenizer_type", UNSUPPORTED_TYPES[name]))
    raise ConfigError(Fault(f"unknown tokenizer '{name}'", "tokenizer_type", f"known: {', '.join(TOKENIZER_TYPES)}"))


def tokenizer_path(arguments: Mapping[str, Any]) -> Path:
    """The tokenizer's folder or file: ``tokenizer_model`` (Megatron) or ``tokenizer_path`` (FlagScale)."""
    key = "tokenizer_model" if arguments.get("tokenizer_model") else "tokenizer_path"
    return tokenizer_file(arguments, key)


def tokenizer_file(arguments: Mapping[str, Any], key: str) -> Path:
    """The path that ``key`` gives; ConfigError when it is missing or nothing is there."""
    value = arguments.get(key)
    if not value:
        raise ConfigError(Fault(f"{arguments['tokenizer_type']} needs its files", "tokenizer_type", f"give {key}"))
    path = Path(str(value)).expanduser()
    if not path.exists():
        raise ConfigError(Fault(f"no such tokenizer: {path}", key, "files must be local; nothing is downloaded"))
    return path


def _has_files(arguments: Mapping[str, Any], kind: Kind) -> bool:
    keys = ("vocab_file",) if kind == "gpt2" else ("tokenizer_model", "tokenizer_path")
    values = [arguments.get(key) for key in keys]
    return kind == "bytes" or any(value and Path(str(value)).expanduser().exists() for value in values)


def read_huggingface(path: Path, eod: str | None = None) -> Vocabulary:
    """The vocabulary of a folder with ``tokenizer.json``, or of that file itself."""
    file = path / "tokenizer.json" if path.is_dir() else path
    content = read_json(file)
    added = {str(token["content"]): int(token["id"]) for token in content.get("added_tokens") or ()}
    vocab = content.get("model", {}).get("vocab")
    if isinstance(vocab, dict):
        ids = {**vocab, **added}
    elif isinstance(vocab, list):
        ids = {str(piece[0]): i for i, piece in enumerate(vocab)} | added
    else:
        raise ConfigError(Fault(f"{file} has no vocabulary", fix="expected a HuggingFace tokenizer.json"))
    names = (eod,) if eod else (_configured_eos(file.parent), *EOD_TOKENS)
    return Vocabulary(max(ids.values()) + 1, _first_id(ids, names), str(file))


def _configured_eos(folder: Path) -> str | None:
    """The ``eos_token`` of a folder's ``tokenizer_config.json``, which may be a string or an object."""
    file = folder / "tokenizer_config.json"
    eos = read_json(file).get("eos_token") if file.exists() else None
    return eos.get("content") if isinstance(eos, dict) else eos


def _read_gpt2(vocab_file: Path, eod: str | None) -> Vocabulary:
    ids = read_json(vocab_file)
    return Vocabulary(max(ids.values()) + 1, _first_id(ids, (eod, *EOD_TOKENS)), str(vocab_file))


def read_sentencepiece(path: Path) -> Vocabulary:
    """The vocabulary of a SentencePiece model: the pieces of its protocol buffer, counted."""
    file = path / "tokenizer.model" if path.is_dir() else path
    if not file.exists():
        raise ConfigError(Fault(f"no such tokenizer: {file}", "tokenizer_model"))
    try:
        ids = {_piece_text(piece): i for i, piece in enumerate(_messages(file.read_bytes(), field=1))}
    except (IndexError, UnicodeDecodeError) as error:
        raise ConfigError(Fault(f"{file} is not a SentencePiece model", "tokenizer_model")) from error
    if not ids:
        raise ConfigError(Fault(f"{file} is not a SentencePiece model: it has no pieces", "tokenizer_model"))
    return Vocabulary(max(ids.values()) + 1, _first_id(ids, EOD_TOKENS), str(file))


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _messages(data: bytes, field: int) -> Iterator[bytes]:
    """The length-delimited values of one field of a protocol buffer message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == 2:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise IndexError("message ends early")
            if tag >> 3 == field:
                yield data[at : at + length]
            at += length
        elif wire == 0:
            _, at = _varint(data, at)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise IndexError(f"wire type {wire}")


def _piece_text(piece: bytes) -> str:
    return next(_messages(piece, field=1), b"").decode("utf-8")


def _first_id(ids: Mapping[str, int], names: tuple[str | None, ...]) -> int | None:
    return next((ids[name] for name in names if name is not None and name in ids), None)


def read_json(file: Path) -> Any:
    """A JSON object; ConfigError when it is missing or none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(Fault(f"cannot read {file}: {error}")) from error
    if not isinstance(content, dict):
        raise ConfigError(Fault(f"{file} is not a JSON object"))
    return content


def _bare_vocabulary(size: Any) -> Vocabulary:
    if size is None:
        fix = "give tokenizer_type with its files, or vocab_size for data that is tokenized already"
        raise ConfigError(Fault("the size of the vocabulary is not known", "vocab_size", fix))
    return Vocabulary(int(size), None, "vocab_size")


def _with_size(found: Vocabulary, size: int) -> Vocabulary:
    if size < found.size:
        fix = f"leave vocab_size out, or give at least {found.size}"
        raise ConfigError(
            Fault(f"vocab_size {size} is less than the {found.size} of {found.source}", "vocab_size", fix)
        )
    return Vocabulary(size, found.eod, found.source)
