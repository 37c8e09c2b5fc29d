"""FlagScale's hostfile: one host a line, ``host slots=8 type=A800``, ``#`` for comments."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from ipaddress import IPv6Address
from pathlib import Path

from flagvega.errors import ConfigError, Fault

_KEYS = ("slots", "type")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
"""A host name or an IPv4 address; never an option of a command."""


@dataclass(frozen=True)
class HostLine:
    """One host of a hostfile."""

    host: str
    slots: int | None
    """Devices of the host; None: not said."""
    type: str | None
    """Its kind of device, as written; None: not said."""
    where: str
    """``file:line``."""


def read_hostfile(path: Path) -> tuple[HostLine, ...]:
    """The hosts of a file in order; ConfigError with every fault and its line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(Fault(f"cannot read the hostfile: {error}", str(path))) from error
    return parse_hostfile(text, str(path))


def parse_hostfile(text: str, name: str) -> tuple[HostLine, ...]:
    """The hosts of a hostfile's text; ``name`` is that of the file."""
    faults: list[Fault] = []
    hosts: dict[str, HostLine] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        found = _read_line(words, f"{name}:{number}", faults)
        if found.host in hosts:
            what = f"host {found.host} is listed twice"
            faults.append(Fault(what, found.where, f"it is already at {hosts[found.host].where}; add its slots there"))
        hosts.setdefault(found.host, found)
    typed = [host for host in hosts.values() if host.type is not None]
    if typed and len(typed) < len(hosts):
        bare = next(host for host in hosts.values() if host.type is None)
        faults.append(Fault(f"host {bare.host} has no type, but {typed[0].host} has one", bare.where, "add type=..."))
    if not hosts:
        faults.append(Fault("the hostfile lists no host", name, "write lines like: host-a slots=8 type=A800"))
    if faults:
        raise ConfigError(faults)
    return tuple(hosts.values())


def _read_line(words: list[str], where: str, faults: list[Fault]) -> HostLine:
    host = words[0]
    if not _NAME.fullmatch(host) and not _is_ipv6(host):
        fix = "write the name or address alone; ports belong to runner.ssh_port" if ":" in host else "write a host name"
        faults.append(Fault(f"'{host}' is no host name or address", where, fix))
    values: dict[str, str] = {}
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if key not in _KEYS or not equals or not value:
            near = get_close_matches(key, _KEYS, n=1)
            fix = f"did you mean {near[0]}={value or '...'}?" if near else "a line is: host slots=8 type=A800"
            faults.append(Fault(f"'{word}' is not understood", where, fix))
        elif key in values:
            faults.append(Fault(f"{key} is given twice", where, "keep one of them"))
        else:
            values[key] = value
    return HostLine(host.strip("[]"), _read_slots(values.get("slots"), where, faults), values.get("type"), where)


def _is_ipv6(host: str) -> bool:
    try:
        IPv6Address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _read_slots(text: str | None, where: str, faults: list[Fault]) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        faults.append(Fault(f"slots={text} is no number of devices", where, "write at least slots=1, or drop the line"))
        return None
    return int(text)
