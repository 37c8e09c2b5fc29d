"""Real text that every machine with Python has: its language reference and its standard library."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

LEFT_OUT = frozenset(
    ("test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages", "pydoc_data", "ensurepip")
)


def python_corpus(max_bytes: int) -> Iterator[str]:
    """Documents, about ``max_bytes`` of them: the reference's topics, then the library's modules, each by name."""
    left = max_bytes
    for text in _documents():
        if left <= 0:
            return
        left -= len(text.encode("utf-8"))
        yield text


def _documents() -> Iterator[str]:
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield topics[name]
    root = Path(sysconfig.get_path("stdlib"))
    for file in sorted(_modules(root), key=lambda file: file.relative_to(root).as_posix()):
        text = file.read_text(encoding="utf-8", errors="ignore")
        if text.strip():
            yield text


def _modules(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir() and path.name not in LEFT_OUT:
            yield from _modules(path)
        elif path.suffix == ".py":
            yield path
