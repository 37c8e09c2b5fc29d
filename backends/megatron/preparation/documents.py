"""Documents in text and JSON-lines files, plain or gzipped."""

from __future__ import annotations

import glob
import gzip
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from flagvega.errors import ConfigError, Fault

JSON_ENDINGS = (".jsonl", ".json", ".ndjson")
TEXT_ENDINGS = (".txt", ".text", ".md", ".rst", ".py")
"""What is taken of a directory, besides JSON lines; a file that is named is taken whatever it is called."""


@dataclass(frozen=True)
class Record:
    """One document as it stands in its file."""

    text: str
    where: str
    """``file:line`` for messages."""
    is_json: bool


@dataclass(frozen=True)
class Segment:
    """A piece of a document, and whether the loss counts its tokens."""

    text: str
    counts: bool = True


@dataclass(frozen=True)
class Fields:
    """Which fields of a JSON object make a document."""

    keys: tuple[str, ...] = ("text",)
    """Joined by a line break."""
    prompt: str | None = None
    """With ``answer``: the loss counts the answer only."""
    answer: str = "answer"


def find_files(inputs: Sequence[str]) -> list[Path]:
    """Files that arguments name: files, patterns with ``*``, directories (searched through), each once, in order."""
    found: list[Path] = []
    faults: list[Fault] = []
    for name in inputs:
        if Path(name).is_dir():
            here = sorted(file for file in Path(name).rglob("*") if file.is_file() and _ending(file) in _ENDINGS)
        else:
            here = sorted(Path(file) for file in glob.glob(name, recursive=True) if Path(file).is_file())
        if not here:
            faults.append(Fault(f"no input file: {name}", fix="give files, patterns or directories"))
        found += here
    if faults:
        raise ConfigError(faults)
    return list(dict.fromkeys(found))


_ENDINGS = JSON_ENDINGS + TEXT_ENDINGS


def _ending(file: Path) -> str:
    return Path(file.stem if file.suffix == ".gz" else file.name).suffix.lower()


def read_records(file: Path) -> Iterator[Record]:
    """A text file is one document; every line of a JSON-lines file is one. Blank ones are left out."""
    try:
        with _open(file) as stream:
            if _ending(file) not in JSON_ENDINGS:
                text = stream.read()
                if text.strip():
                    yield Record(text, str(file), is_json=False)
                return
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield Record(line, f"{file}:{number}", is_json=True)
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise ConfigError(Fault(f"not UTF-8 text: {error}", str(file))) from error


@contextmanager
def _open(file: Path) -> Iterator[IO[str]]:
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8") as stream:
        yield stream


def segments(record: Record, fields: Fields) -> list[Segment]:
    """The pieces of a document, empty ones left out; ConfigError when a line is not the JSON that it should be."""
    if not record.is_json:
        if fields.prompt:
            raise ConfigError(Fault("prompts and answers come in JSON lines, not text", record.where))
        return [Segment(record.text)]
    try:
        content = json.loads(record.text)
    except ValueError as error:
        raise ConfigError(Fault(f"not JSON: {error}", record.where)) from error
    names = (fields.prompt, fields.answer) if fields.prompt else fields.keys
    texts = [_field(content, name, record.where) for name in names]
    found = [Segment(texts[0], counts=False), Segment(texts[1])] if fields.prompt else [Segment("\n".join(texts))]
    return [segment for segment in found if segment.text]


def _field(content: Any, name: str, where: str) -> str:
    value = content.get(name) if isinstance(content, dict) else None
    if not isinstance(value, str):
        fix = f"its fields are: {', '.join(content)}" if isinstance(content, dict) else "expected a JSON object"
        raise ConfigError(Fault(f"no text in field '{name}'", where, fix))
    return value
