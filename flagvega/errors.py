"""The error tree and the exit codes: one page, used everywhere."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """What the process tells its caller, be it a shell, a scheduler or a retry loop."""

    DONE = 0
    INTERNAL = 1
    CONFIG = 2
    NO_PLAN = 3
    PREFLIGHT = 4
    TRANSIENT = 75
    DO_NOT_RESTART = 93
    INTERRUPTED = 130
    TERMINATED = 143


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: what, where (``file:line key.path``) and how to mend it."""

    what: str
    where: str = ""
    fix: str = ""

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n    {self.fix}" if self.fix else head


class FlagvegaError(Exception):
    """A fault of the input or of the world, never of our code: shown without a traceback."""

    exit_code: ClassVar[ExitCode] = ExitCode.INTERNAL

    def __init__(self, faults: Fault | str | Iterable[Fault]) -> None:
        if isinstance(faults, str):
            faults = Fault(faults)
        self.faults = (faults,) if isinstance(faults, Fault) else tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))


class ConfigError(FlagvegaError):
    """The user's YAML or command line cannot be run."""

    exit_code = ExitCode.CONFIG


class NoPlanError(FlagvegaError):
    """No layout satisfies the constraints."""

    exit_code = ExitCode.NO_PLAN


class PreflightError(FlagvegaError):
    """The machine is not ready: a port, a directory, a chip, a host, another run."""

    exit_code = ExitCode.PREFLIGHT


class TransientError(FlagvegaError):
    """Trying again may succeed: another host did not come in time."""

    exit_code = ExitCode.TRANSIENT


class VerdictError(FlagvegaError):
    """Trying again would fail in the same way: do not restart."""

    exit_code = ExitCode.DO_NOT_RESTART
