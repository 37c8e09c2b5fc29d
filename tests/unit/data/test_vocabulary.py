"""The size of a vocabulary from files, without the libraries that use them."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.megatron.tokenizer import arguments_for, open_tokenizer
from backends.megatron.vocabulary import TOKENIZER_TYPES, UNSUPPORTED_TYPES, read_vocabulary, vocab_size
from flagvega.errors import ConfigError

TEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps. " * 30


def write_bpe(folder: Path, size: int = 270) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator([TEXT], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    inner.save(str(folder / "tokenizer.json"))
    inner.model.save(str(folder))
    return folder


def write_sentencepiece(folder: Path) -> Path:
    from sentencepiece import SentencePieceTrainer

    def lines() -> Iterator[str]:
        yield from TEXT.split(".")

    model = io.BytesIO()
    SentencePieceTrainer.train(sentence_iterator=lines(), model_writer=model, vocab_size=34, minloglevel=2)
    file = folder / "tokenizer.model"
    file.write_bytes(model.getvalue())
    return file


def test_null_tokenizer_has_one_id_more_to_end_documents() -> None:
    vocabulary = read_vocabulary({"tokenizer_type": "NullTokenizer", "vocab_size": 509})
    assert (vocabulary.size, vocabulary.eod) == (510, 509)


def test_vocab_size_alone_is_taken_as_it_stands() -> None:
    assert vocab_size({"vocab_size": 1000}) == 1000


def test_huggingface_size_counts_added_tokens_and_agrees_with_the_library(tmp_path: Path) -> None:
    folder = write_bpe(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 270, "content": "<extra>"})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    vocabulary = read_vocabulary({"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_path": str(folder)})
    from tokenizers import Tokenizer

    assert vocabulary.size == 271 == Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    assert vocabulary.eod == 0


def test_the_tokenizer_config_says_which_token_ends_a_document(tmp_path: Path) -> None:
    folder = write_bpe(tmp_path)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "!"}}))
    arguments = {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": str(folder)}
    assert read_vocabulary(arguments).eod == open_tokenizer(arguments).encode("!")[0]


def test_sentencepiece_pieces_are_counted_without_the_library(tmp_path: Path) -> None:
    file = write_sentencepiece(tmp_path)
    vocabulary = read_vocabulary({"tokenizer_type": "Llama2Tokenizer", "tokenizer_model": str(file)})
    assert (vocabulary.size, vocabulary.eod) == (34, 2)


def test_a_damaged_sentencepiece_model_is_a_config_error(tmp_path: Path) -> None:
    file = write_sentencepiece(tmp_path)
    file.write_bytes(file.read_bytes()[:100] + b"\xff" * 20)
    with pytest.raises(ConfigError, match="not a SentencePiece model"):
        vocab_size({"tokenizer_type": "SentencePieceTokenizer", "tokenizer_model": str(file)})


def test_flagscales_aquila_tokenizer_reads_its_three_files(tmp_path: Path) -> None:
    folder = write_bpe(tmp_path)
    vocab = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps({**vocab, "</s>": len(vocab)}))
    (folder / "special.txt").write_text("</s>\n")
    arguments = {
        "tokenizer_type": "AquilaTokenizerFS",
        "vocab_file": str(folder / "vocab.json"),
        "merge_file": str(folder / "merges.txt"),
        "special_tokens_file": str(folder / "special.txt"),
    }
    tokenizer = open_tokenizer(arguments)
    assert tokenizer.vocabulary.eod == len(vocab)
    assert tokenizer.encode("dog</s>")[-1] == len(vocab)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def test_vocab_size_stands_in_for_tokenizer_files_that_are_not_here() -> None:
    arguments = {"tokenizer_type": "AquilaTokenizerFS", "vocab_file": "/nowhere/vocab.json", "vocab_size": 100008}
    assert vocab_size(arguments) == 100008


def test_a_vocab_size_below_the_tokenizers_is_refused(tmp_path: Path) -> None:
    folder = write_bpe(tmp_path)
    arguments = {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_path": str(folder)}
    assert vocab_size({**arguments, "vocab_size": 320}) == 320
    with pytest.raises(ConfigError, match="vocab_size 269 is less than the 270"):
        vocab_size({**arguments, "vocab_size": 269})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "not known"),
        ({"tokenizer_type": "NullTokenizer"}, "needs vocab_size"),
        ({"tokenizer_type": "HuggingFaceTokenizer"}, "give tokenizer_path"),
        ({"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_path": "/nowhere"}, "no such tokenizer"),
        ({"tokenizer_type": "TikTokenizer"}, "not supported"),
        ({"tokenizer_type": "LlamaTokenizer"}, "known: NullTokenizer"),
    ],
)
def test_what_does_not_give_a_vocabulary_is_a_config_error(arguments: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        vocab_size(arguments)


def test_no_type_is_both_supported_and_not() -> None:
    assert not set(TOKENIZER_TYPES) & set(UNSUPPORTED_TYPES)


def test_bytes_round_trip_through_any_text() -> None:
    tokenizer = open_tokenizer({"tokenizer_type": "ByteLevel"})
    assert tokenizer.decode(tokenizer.encode("naïve 漢字\n")) == "naïve 漢字\n"
    assert max(tokenizer.encode("漢字")) < tokenizer.vocabulary.size


def test_files_open_by_what_they_are(tmp_path: Path) -> None:
    sentencepiece, bpe = write_sentencepiece(tmp_path), write_bpe(tmp_path / "bpe")
    assert open_tokenizer(arguments_for(sentencepiece)).vocabulary.size == 34
    for path in (bpe, bpe / "tokenizer.json"):
        tokenizer = open_tokenizer(arguments_for(path))
        assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def test_reading_a_vocabulary_imports_no_heavy_library(tmp_path: Path) -> None:
    folder = write_bpe(tmp_path)
    program = (
        "import sys; from backends.megatron.vocabulary import vocab_size;"
        f"vocab_size({{'tokenizer_type': 'HuggingFaceTokenizer', 'tokenizer_path': {str(folder)!r}}});"
        "sys.exit(bool({'torch', 'numpy', 'tokenizers', 'sentencepiece'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
