"""A byte-level BPE trained here, by the ``tokenizers`` library."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from flagvega.errors import ConfigError, Fault
from flagvega.records import write_text

EOD = "<|endoftext|>"
LEAST = 257
"""All bytes, and the end of a document."""


def train_bpe(texts: Iterable[str], vocab_size: int, max_bytes: int, file: Path) -> int:
    """Train on the first ``max_bytes`` of ``texts``, write ``file`` (a ``tokenizer.json``), return the size reached.

    Small corpora have fewer pairs than asked for; then the vocabulary is smaller.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < LEAST:
        raise ConfigError(Fault(f"--vocab-size {vocab_size} is too small", fix=f"at least {LEAST}: every byte is one"))
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(_first(texts, max_bytes), trainer)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, inner.to_str(pretty=True))
    return int(inner.get_vocab_size())


def _first(texts: Iterable[str], max_bytes: int) -> Iterator[str]:
    for text in texts:
        yield text
        max_bytes -= len(text.encode("utf-8"))
        if max_bytes <= 0:
            return
