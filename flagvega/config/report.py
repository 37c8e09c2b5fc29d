"""Gathers everything that is wrong with a configuration, each thing with its place."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass, field
from typing import Final

from flagvega.config.nearest import suggest
from flagvega.errors import ConfigError, Fault

COMMAND_LINE: Final = "command line: "
"""How the place of something typed begins."""


@dataclass
class Report:
    """Faults and warnings found so far."""

    places: Mapping[str, str]
    """Key path -> where it was written (``file:line key.path``)."""
    homes: Mapping[str, str] = field(default_factory=dict)
    """Key -> the sentence that tells where it belongs, for keys found elsewhere."""
    variables: Set[str] = frozenset()
    """Key paths that other keys refer to (``${experiment.seed}``): they may be anything."""
    faults: list[Fault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    included: dict[str, str] = field(default_factory=dict)
    """Key path -> where a file that a block stands for (``cluster: <path>``) has it."""

    def place(self, path: str) -> str:
        """``file:line key.path`` of a path; one that was written nowhere itself has the place of what is near it."""
        if path in self.places:
            return self.places[path]
        near = next((key for key in self.places if key.startswith((f"{path}.", f"{path}["))), path)
        while near and near not in self.places:
            near = near.rpartition(".")[0]
        if not near:
            return path
        if self.places[near].startswith(COMMAND_LINE):
            return f"{COMMAND_LINE}{path}"
        return f"{self.places[near].removesuffix(near)}{path}"

    def fault(self, path: str, what: str, fix: str = "") -> None:
        """Something that must be mended before anything starts."""
        self.faults.append(Fault(what, self.place(path), fix))

    def warn(self, path: str, what: str) -> None:
        """Something that the user should know."""
        self.warnings.append(f"{self.place(path)}: {what}")

    def has_fault(self, path: str) -> bool:
        """Whether something is wrong with just this path."""
        return any(fault.where == self.place(path) for fault in self.faults)

    def unknown(self, path: str, valid: Collection[str], inside: str) -> None:
        """A key that is not known here: where it belongs, what was meant, or what there is.

        One that another key refers to is the user's own variable, and no fault.
        """
        name = path.rpartition(".")[2]
        if any(variable == path or variable.startswith(f"{path}.") for variable in self.variables):
            return
        if home := self.homes.get(name.replace("-", "_")):
            self.fault(path, f"'{name}' does not belong {inside}", home)
        else:
            hint = suggest(name, valid) or suggest(name, self.homes)
            listed = f"keys {inside}: {', '.join(valid)}" if len(valid) < 20 else "action=schema lists every key"
            self.fault(path, f"unknown key '{name}'", hint or listed)

    def raise_faults(self) -> None:
        """End here, with all faults in one message, if there are any."""
        if self.faults:
            raise ConfigError(self.faults)
