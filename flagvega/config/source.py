"""One YAML file, read for its lines and for what must not be in it; nothing of it is constructed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import yaml

from flagvega.errors import ConfigError, Fault

_MAX_NODES: Final = 100_000
_MAX_DEPTH: Final = 64
_PLAIN_TAG: Final = "tag:yaml.org,2002:"
_PLAIN_TAGS: Final = frozenset(
    _PLAIN_TAG + name for name in ("str", "int", "float", "bool", "null", "seq", "map", "merge", "value", "timestamp")
)
_MERGE: Final = _PLAIN_TAG + "merge"
_GLUED: Final = re.compile(r"\s*[\w-]+:[^\s:/]")
_INSTANTIATE: Final = re.compile(r"_(target|partial|args|recursive|convert)_")


@dataclass
class Source:
    """Where each key of a file stands, and the faults of the file as such."""

    path: Path
    lines: dict[str, int] = field(default_factory=dict)
    """Key path -> line, from 1."""
    faults: list[Fault] = field(default_factory=list)
    num_nodes: int = 0

    def place(self, key: str, line: int) -> str:
        """``file:line key``."""
        return f"{shown(self.path)}:{line} {key}".rstrip()


def shown(path: Path) -> str:
    """A path as the user would type it: relative to the working directory where it lies below that."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def scan(path: Path, may_be_list: bool = False) -> Source:
    """Read a file's lines; its faults are tags, keys that make objects, and keys given twice.

    :raises ConfigError: when the file is not YAML.
    """
    source = Source(path)
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(syntax_fault(error, path)) from error
    except UnicodeDecodeError as error:
        raise ConfigError(Fault(f"not UTF-8 text: {error.reason} at byte {error.start}", shown(path))) from error
    except OSError as error:
        raise ConfigError(Fault(f"cannot be read: {error.strerror}", shown(path))) from error
    if root is not None and not isinstance(root, (yaml.MappingNode, yaml.SequenceNode)[: 1 + may_be_list]):
        source.faults.append(Fault("expected keys with values ('key: value')", source.place("", 1)))
    elif root is not None:
        _walk(source, root, "")
    return source


def scan_value(text: str, place: str) -> list[Fault]:
    """The faults of a value typed on the command line, which is YAML too."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return []
    source = Source(Path("-"))
    if root is not None:
        _walk(source, root, "")
    return [Fault(fault.what, place, fault.fix) for fault in source.faults]


def syntax_fault(error: yaml.YAMLError, path: Path) -> Fault:
    """What the YAML reader could not read, with its line."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    if mark is None:
        return Fault(f"not YAML: {what}", shown(path))
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    line = min(mark.line, len(lines) - 1)
    glued = [i for i in (line, line - 1) if i >= 0 and _GLUED.match(lines[i])]
    if "\t" in lines[line]:
        fix = "indent with spaces, not with tabs"
    elif glued:
        line, fix = glued[0], f"a blank belongs behind the colon: {lines[glued[0]].strip()}"
    else:
        fix = f"the line: {lines[line].strip()}"
    return Fault(f"not YAML: {what}", f"{shown(path)}:{line + 1}", fix)


def _walk(source: Source, node: yaml.Node, path: str, depth: int = 0) -> None:
    source.num_nodes += 1
    if source.num_nodes > _MAX_NODES or depth > _MAX_DEPTH:
        raise ConfigError(Fault("too large or too deep: an alias inside itself?", source.place("", _line(node))))
    if node.tag not in _PLAIN_TAGS:
        tag = node.tag.replace(_PLAIN_TAG, "!!")
        _refuse(source, node, path, f"tag '{tag}' is refused", "write a plain value")
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            source.lines.setdefault(f"{path}[{i}]", _line(item))
            _walk(source, item, f"{path}[{i}]", depth + 1)
    elif isinstance(node, yaml.MappingNode):
        _walk_mapping(source, node, path, depth)


def _walk_mapping(
    source: Source, node: yaml.MappingNode, path: str, depth: int, merged: frozenset[str] | None = None
) -> None:
    """The keys of a mapping; those that ``<<`` brings come after its own, which hide them (``merged``)."""
    first: dict[str, int] = {}
    for key, value in node.value:
        name = str(key.value)
        full = f"{path}.{name}" if path else name
        if not isinstance(key, yaml.ScalarNode):
            _refuse(source, key, path, "a key must be a name", "write 'name: value'")
        elif key.tag != _MERGE and name not in (merged or ()):
            _check_key(source, key, full, first)
            source.lines.setdefault(full, _line(key))
            _walk(source, value, full, depth + 1)
    hidden = (merged or frozenset()) | first.keys()
    for key, value in node.value:
        for mapping in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            if key.tag == _MERGE and isinstance(mapping, yaml.MappingNode):
                if depth > _MAX_DEPTH:
                    raise ConfigError(Fault("a mapping is merged into itself", source.place(path, _line(key))))
                _walk_mapping(source, mapping, path, depth + 1, hidden)


def _check_key(source: Source, key: yaml.ScalarNode, full: str, first: dict[str, int]) -> None:
    name = str(key.value)
    if key.tag not in _PLAIN_TAGS:
        _refuse(source, key, full, "a tag on a key is refused", "write a plain name")
    if _INSTANTIATE.fullmatch(name):
        _refuse(source, key, full, f"key '{name}' is refused: a configuration never makes objects", "delete it")
    if name in first:
        fix = f"it is already on line {first[name]}: delete one of them"
        _refuse(source, key, full, f"key '{name}' is given twice", fix)
    first.setdefault(name, _line(key))


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _refuse(source: Source, node: yaml.Node, path: str, what: str, fix: str) -> None:
    source.faults.append(Fault(what, source.place(path, _line(node)), fix))
