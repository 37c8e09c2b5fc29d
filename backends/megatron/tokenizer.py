"""Text to token ids and back, from local files only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from backends.megatron.vocabulary import (
    Vocabulary,
    read_json,
    read_vocabulary,
    tokenizer_file,
    tokenizer_path,
    tokenizer_type,
)
from flagvega.errors import ConfigError, Fault


class Tokenizer(Protocol):
    """What turns text into ids. Special tokens are never added by themselves."""

    vocabulary: Vocabulary

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids."""


class ByteTokenizer:
    """Every byte of UTF-8 is a token; id 256 ends a document."""

    vocabulary = Vocabulary(257, 256, "ByteLevel")

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        return list(text.encode("utf-8"))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; what is no UTF-8 becomes a replacement character."""
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")


class NullTokenizer:
    """Numbers between blanks stand for themselves."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        return [int(word) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids."""
        return " ".join(str(i) for i in ids)


class FastTokenizer:
    """A tokenizer of the ``tokenizers`` library (a ``tokenizers.Tokenizer``)."""

    def __init__(self, inner: Any, vocabulary: Vocabulary) -> None:
        self._inner, self.vocabulary = inner, vocabulary

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        return list(self._inner.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        return str(self._inner.decode(list(ids)))

    def save(self, file: Path) -> None:
        """Write it as a ``tokenizer.json``."""
        self._inner.save(str(file))


class SentencePieceTokenizer:
    """A SentencePiece model."""

    def __init__(self, file: Path, vocabulary: Vocabulary) -> None:
        from sentencepiece import SentencePieceProcessor

        self._inner, self.vocabulary = SentencePieceProcessor(model_file=str(file)), vocabulary

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        return list(self._inner.encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids."""
        return str(self._inner.decode(list(ids)))


def open_tokenizer(arguments: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of engine arguments; ConfigError where its type or files are wrong."""
    vocabulary = read_vocabulary(arguments)
    if arguments.get("tokenizer_type") is None:
        return NullTokenizer(vocabulary)
    kind = tokenizer_type(str(arguments["tokenizer_type"])).kind
    if kind == "null":
        return NullTokenizer(vocabulary)
    if kind == "bytes":
        return ByteTokenizer()
    if kind == "huggingface":
        return _fast_tokenizer(tokenizer_path(arguments), vocabulary)
    if kind == "gpt2":
        return _gpt2_tokenizer(arguments, vocabulary)
    return _sentencepiece_tokenizer(tokenizer_path(arguments), vocabulary)


def arguments_for(path: Path) -> dict[str, str]:
    """Engine arguments that open a HuggingFace folder, a ``tokenizer.json`` or a SentencePiece ``*.model``."""
    if not path.exists():
        raise ConfigError(Fault(f"no such tokenizer: {path}", fix="files must be local; nothing is downloaded"))
    is_pieces = path.suffix == ".model" or (path.is_dir() and not (path / "tokenizer.json").exists())
    return {
        "tokenizer_type": "SentencePieceTokenizer" if is_pieces else "HuggingFaceTokenizer",
        "tokenizer_model": str(path),
    }


def _fast_tokenizer(path: Path, vocabulary: Vocabulary) -> Tokenizer:
    from tokenizers import Tokenizer as Inner

    inner = Inner.from_file(str(path / "tokenizer.json" if path.is_dir() else path))
    inner.no_truncation()
    inner.no_padding()
    return FastTokenizer(inner, vocabulary)


def _sentencepiece_tokenizer(path: Path, vocabulary: Vocabulary) -> Tokenizer:
    return SentencePieceTokenizer(path / "tokenizer.model" if path.is_dir() else path, vocabulary)


def _gpt2_tokenizer(arguments: Mapping[str, Any], vocabulary: Vocabulary) -> Tokenizer:
    """GPT-2's byte-level BPE from ``vocab_file`` and ``merge_file``; Aquila's adds ``special_tokens_file``."""
    from tokenizers import Tokenizer as Inner
    from tokenizers.decoders import ByteLevel as Decoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    vocab, merges = tokenizer_file(arguments, "vocab_file"), tokenizer_file(arguments, "merge_file")
    inner = Inner(BPE.from_file(str(vocab), str(merges)))
    inner.pre_tokenizer, inner.decoder = ByteLevel(add_prefix_space=False), Decoder()
    if arguments.get("special_tokens_file"):
        known = read_json(vocab)
        lines = tokenizer_file(arguments, "special_tokens_file").read_text(encoding="utf-8").splitlines()
        inner.add_special_tokens([line for line in lines if line in known])
    return FastTokenizer(inner, vocabulary)
