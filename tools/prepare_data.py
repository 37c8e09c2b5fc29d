"""Turn text and JSON-lines files into the indexed token files that training reads.

prepare_data.py --corpus python --train-tokenizer data/tokenizer.json --vocab-size 4096 --output data/python
prepare_data.py books/ 'news/*.jsonl.gz' --tokenizer byte --output data/text
prepare_data.py questions.jsonl --sft --tokenizer qwen2.5/ --output data/questions
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from backends.megatron.datafiles import MASK_KEY  # noqa: E402
from backends.megatron.preparation.bpe import train_bpe  # noqa: E402
from backends.megatron.preparation.corpus import python_corpus  # noqa: E402
from backends.megatron.preparation.documents import Fields, Record, find_files, read_records, segments  # noqa: E402
from backends.megatron.preparation.encoding import Encoded, Recipe, encode  # noqa: E402
from backends.megatron.tokenizer import arguments_for  # noqa: E402
from backends.megatron.vocabulary import read_vocabulary  # noqa: E402
from flagvega.errors import ConfigError, Fault, FlagvegaError  # noqa: E402


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one message that says what is wrong with the input."""
    try:
        prepare(parse(argv))
    except FlagvegaError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.exit_code)
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", nargs="*", help="files, 'patterns*' or directories; .jsonl lines, else text; .gz too")
    parser.add_argument("--corpus", choices=["python"], help="take the Python reference and standard library instead")
    parser.add_argument("--max-bytes", type=int, default=4_000_000, help="of the corpus (default: %(default)s)")
    parser.add_argument("--output", required=True, metavar="PREFIX", help="writes PREFIX.bin, PREFIX.idx, PREFIX.json")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="write anew even if nothing has changed")

    group = parser.add_argument_group("tokenizer")
    which = group.add_mutually_exclusive_group(required=True)
    which.add_argument("--tokenizer", metavar="byte|PATH", help="'byte'; a HuggingFace folder; a SentencePiece .model")
    which.add_argument("--train-tokenizer", metavar="FILE", help="train a byte-level BPE on the input, write it here")
    group.add_argument("--vocab-size", type=int, default=4096, help="of the trained one (default: %(default)s)")
    group.add_argument("--train-bytes", type=int, default=64 << 20, help="text to train it on (default: %(default)s)")
    group.add_argument("--append-eod", action=argparse.BooleanOptionalAction, default=True, help="end documents")

    group = parser.add_argument_group("JSON lines")
    group.add_argument("--json-keys", nargs="+", default=["text"], metavar="KEY", help="text fields (default: text)")
    group.add_argument("--sft", action="store_true", help="prompts and answers: the loss counts answers only")
    group.add_argument("--prompt-key", default="prompt", metavar="KEY", help="(default: %(default)s)")
    group.add_argument("--answer-key", default="answer", metavar="KEY", help="(default: %(default)s)")
    options = parser.parse_args(argv)
    if bool(options.input) == bool(options.corpus):
        parser.error("give input files, or --corpus python")
    return options


def prepare(options: argparse.Namespace) -> None:
    """Write the files, unless they are there and nothing has changed."""
    prefix = Path(options.output)
    source = Source(options)
    fingerprint = _fingerprint(options, source)
    if not options.force and _is_current(prefix, fingerprint, options):
        print(f"{prefix}: up to date")
        return
    fields = _fields(options)
    if options.train_tokenizer:
        texts = (segment.text for record in source.read("train tokenizer") for segment in segments(record, fields))
        size = train_bpe(texts, options.vocab_size, options.train_bytes, Path(options.train_tokenizer))
        print(f"{options.train_tokenizer}: {size} tokens")
    arguments = _tokenizer_arguments(options)
    vocabulary = read_vocabulary(arguments)
    recipe = Recipe(tuple(arguments.items()), fields, options.append_eod)
    batches: Iterable[Encoded] = encode(source.read("tokenize"), recipe, options.workers)

    from backends.megatron.preparation.indexed import write_indexed  # takes seconds, and --help should not

    facts = {"fingerprint": fingerprint, "tokenizer": arguments, "eod": vocabulary.eod, "sft": options.sft}
    written = write_indexed(prefix, batches, vocabulary.size, mask=options.sft, facts=facts)
    print(_summary(prefix, written, arguments))


class Source:
    """The input, read as often as needed, with a progress bar."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.max_bytes = options.max_bytes
        self.files = [] if options.corpus else find_files(options.input)

    def read(self, title: str) -> Iterator[Record]:
        """All documents in order."""
        total = sum(file.stat().st_size for file in self.files) or self.max_bytes
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
            task = progress.add_task(title, total=total)
            for file in self.files:
                yield from read_records(file)
                progress.advance(task, file.stat().st_size)
            if not self.files:
                for number, text in enumerate(python_corpus(self.max_bytes)):
                    yield Record(text, f"corpus:{number}", is_json=False)
                    progress.advance(task, len(text))

    def facts(self) -> list[Any]:
        """What changes when the input does."""
        stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in self.files]
        return stats or [sys.version, self.max_bytes]


def _fields(options: argparse.Namespace) -> Fields:
    if options.sft:
        return Fields(prompt=options.prompt_key, answer=options.answer_key)
    return Fields(keys=tuple(options.json_keys))


def _tokenizer_arguments(options: argparse.Namespace) -> dict[str, str]:
    if options.tokenizer == "byte":
        return {"tokenizer_type": "ByteLevel"}
    return arguments_for(Path(options.train_tokenizer or options.tokenizer))


def _fingerprint(options: argparse.Namespace, source: Source) -> str:
    names = ("tokenizer", "train_tokenizer", "vocab_size", "train_bytes", "append_eod", "json_keys", "sft")
    chosen = {name: getattr(options, name) for name in (*names, "prompt_key", "answer_key")}
    given = Path(options.tokenizer) if options.tokenizer not in (None, "byte") else None
    files = sorted(given.glob("*token*")) if given and given.is_dir() else [given] if given else []
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.exists()]
    return hashlib.sha256(json.dumps([chosen, stats, source.facts()]).encode()).hexdigest()


def _is_current(prefix: Path, fingerprint: str, options: argparse.Namespace) -> bool:
    manifest = Path(f"{prefix}.json")
    try:
        written = json.loads(manifest.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except ValueError as error:
        raise ConfigError(Fault(f"{manifest} is not ours: {error}", fix="remove it, or write elsewhere")) from error
    files = [f"{prefix}.bin", f"{prefix}.idx", *([options.train_tokenizer] if options.train_tokenizer else [])]
    return written.get("fingerprint") == fingerprint and all(Path(file).exists() for file in files)


def _summary(prefix: Path, written: dict[str, Any], arguments: dict[str, str]) -> str:
    lines = [
        f"{prefix}: {written['documents']} documents, {written['tokens']} tokens, {written['vocab_size']} ids",
        "in the task YAML:",
        "  data:",
        f"    data_path: {prefix}",
        *([f"    {MASK_KEY}: true"] if written["sft"] else []),
        "    tokenizer:",
        *(f"      {key}: {value}" for key, value in arguments.items()),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
