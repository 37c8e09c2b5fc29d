"""Files that outlive a process: written whole or not at all, appended by lines, verified, locked."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from flagvega.errors import Fault, PreflightError

HASH_BLOCK_BYTES = 1 << 20
TAIL_BYTES = 1 << 20
"""No line is longer."""


# ---- whole files ----


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """PreflightError, with a way out, where the block cannot write what it writes to ``path``."""
    try:
        yield
    except OSError as error:
        fix = "give another experiment.exp_dir"
        raise PreflightError(Fault(f"cannot be written: {error.strerror}", str(path), fix)) from error


def write_text(path: str | Path, text: str, mode: int = 0o644) -> None:
    """Replace a file by ``text`` in one step: a crash leaves the old content or the new one."""
    write_bytes(path, text.encode(), mode)


def write_bytes(path: str | Path, content: bytes, mode: int = 0o644) -> None:
    """Replace a file by ``content`` in one step."""
    path = Path(path)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        os.replace(name, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise
    sync_directory(path.parent)


def write_json(path: str | Path, value: Any) -> None:
    """Replace a file by ``value`` as JSON, readable and with a final newline."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=True) + "\n")


def read_json(path: str | Path) -> Any:
    """The JSON of a file; FileNotFoundError or json.JSONDecodeError as they come."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def sync_directory(path: Path) -> None:
    """Make renames in a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- lines ----


def append_json_line(path: str | Path, value: Any, durable: bool = False) -> None:
    """Append one object in one write. A file has one writer; a line torn by its death is cut off first.

    ``durable`` returns only when it is on the disk.
    """
    line = json.dumps(value, ensure_ascii=False).encode() + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            os.ftruncate(descriptor, Path(path).read_bytes().rfind(b"\n") + 1)
        os.write(descriptor, line)
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json_lines(path: str | Path) -> list[dict[str, Any]]:
    """All whole lines of a file; empty when there is no file; a line without its end is dropped."""
    return Lines(path).read()


def read_last_json_line(path: str | Path) -> dict[str, Any] | None:
    """The last whole line of a file that may have grown for months; None where there is none."""
    try:
        with Path(path).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return None
    return json.loads(lines[-2]) if len(lines) > 1 else None


def count_lines(path: str | Path) -> int:
    """Whole lines of a file; 0 when there is no file."""
    try:
        with Path(path).open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(HASH_BLOCK_BYTES), b""))
    except FileNotFoundError:
        return 0


class Lines:
    """A file of JSON lines that is read as it grows."""

    def __init__(self, path: str | Path, offset_bytes: int = 0) -> None:
        self.path = Path(path)
        self.offset = offset_bytes

    def skip(self) -> None:
        """Pass over what is there already."""
        with suppress(FileNotFoundError):
            self.offset = self.path.stat().st_size

    def read(self) -> list[dict[str, Any]]:
        """The whole lines written since the last call."""
        try:
            with self.path.open("rb") as file:
                file.seek(min(self.offset, os.fstat(file.fileno()).st_size))
                data = file.read()
        except FileNotFoundError:
            return []
        end = data.rfind(b"\n") + 1
        self.offset += end
        return [json.loads(line) for line in data[:end].splitlines() if line.strip()]


# ---- manifests ----


def hash_file(path: str | Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def write_manifest(directory: str | Path, name: str = "manifest.json") -> None:
    """Record size and hash of every file below ``directory``; written last, it says that all is there."""
    directory = Path(directory)
    files = {
        path.relative_to(directory).as_posix(): {"size_bytes": path.stat().st_size, "sha256": hash_file(path)}
        for path in _files(directory)
        if path.name != name
    }
    write_json(directory / name, {"files": files})


def verify_manifest(directory: str | Path, name: str = "manifest.json", hashes: bool = True) -> list[str]:
    """What is wrong with a directory, one line each; empty when every file is as recorded.

    ``hashes=False`` looks at sizes only, which finds what was cut short but not a flipped bit.
    """
    directory = Path(directory)
    try:
        files = read_json(directory / name)["files"]
    except FileNotFoundError:
        return [f"{name} is missing: the writing was not finished"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return [f"{name} is damaged"]
    return [fault for file, facts in files.items() if (fault := _judge_file(directory / file, file, facts, hashes))]


def _judge_file(path: Path, name: str, facts: dict[str, Any], hashes: bool) -> str:
    if not path.is_file():
        return f"{name} is missing"
    if (size := path.stat().st_size) != facts["size_bytes"]:
        return f"{name} has {size} bytes instead of {facts['size_bytes']}"
    if hashes and hash_file(path) != facts["sha256"]:
        return f"{name} has another content than was written"
    return ""


def _files(directory: Path) -> Iterable[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


# ---- who runs here ----


@dataclass(frozen=True)
class Owner:
    """A process that no other can be mistaken for, not even after a reboot or a reused pid."""

    host: str
    boot: str
    pid: int
    started: float
    """Start of the process, unix s."""
    since: float
    """When it took what it owns, unix s."""

    @classmethod
    def of(cls, pid: int) -> Owner:
        """The owner that process ``pid`` of this host is."""
        return cls(socket.gethostname(), boot_id(), pid, psutil.Process(pid).create_time(), time.time())

    @property
    def local(self) -> bool:
        """Whether it is, or was, a process of this host."""
        return self.host == socket.gethostname()

    @property
    def alive(self) -> bool | None:
        """Whether it still runs; None when it is another host's and cannot be known."""
        if not self.local:
            return None
        if self.boot != boot_id():
            return False
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < 1.0
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {time.strftime('%F %T', time.localtime(self.since))}"


def boot_id() -> str:
    """What changes when this host boots."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return f"{psutil.boot_time():.0f}"


class Lock:
    """A file that says which process owns a directory. A dead owner's is taken over."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.taken_over = False
        """Whether the last owner died without releasing it."""

    def owner(self) -> Owner | None:
        """Who holds it, dead or alive."""
        try:
            return Owner(**read_json(self.path))
        except (FileNotFoundError, json.JSONDecodeError, TypeError):
            return None

    def acquire(self) -> Lock:
        """Take it for this process; PreflightError when a living process, or another host's, has it."""
        with self._guard():
            owner = self.owner()
            if owner and owner.alive is not False:
                raise PreflightError(self._in_use(owner))
            self.taken_over = owner is not None
            self._write(os.getpid())
        return self

    def hand_over(self, pid: int) -> None:
        """Let process ``pid`` of this host own it from now on."""
        with self._guard():
            self._write(pid)

    def release(self) -> None:
        """Give it up; nothing happens when another process has it by now."""
        with self._guard():
            owner = self.owner()
            if owner is None or (owner.local and (owner.pid == os.getpid() or not owner.alive)):
                self.path.unlink(missing_ok=True)

    def __enter__(self) -> Lock:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def _write(self, pid: int) -> None:
        write_json(self.path, asdict(Owner.of(pid)))

    def _guard(self) -> FileLock:
        return FileLock(self.path.with_name(f".{self.path.name}.guard"))

    def _in_use(self, owner: Owner) -> Fault:
        fix = "stop that run (action=stop), or give this one another experiment.exp_dir"
        if not owner.local:
            fix += f"; if {owner.host} is gone for good, delete {self.path}"
        return Fault(f"in use by {owner}", where=str(self.path.parent), fix=fix)
