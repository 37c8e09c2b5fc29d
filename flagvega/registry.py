"""Finds plug-ins: built-ins by folder, others by entry point. Nothing is imported until asked for."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Generic, TypeVar

from flagvega.errors import ConfigError, Fault

T = TypeVar("T")


class Registry(Generic[T]):
    """Plug-ins of one kind: ``<folder>/<name>/<module>.py`` with an object of the kind's name in it."""

    def __init__(self, kind: str, folder: str, module: str, group: str) -> None:
        self.kind, self.folder, self.module, self.group = kind, folder, module, group

    @cached_property
    def _folders(self) -> tuple[str, ...]:
        spec = importlib.util.find_spec(self.folder)
        roots = [Path(root) for root in (spec.submodule_search_locations or ())] if spec else []
        return tuple(sorted(path.parent.name for root in roots for path in root.glob(f"*/{self.module}.py")))

    @cached_property
    def _entry_points(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)}

    def names(self) -> tuple[str, ...]:
        """All known names, built-ins first."""
        return self._folders + tuple(sorted(set(self._entry_points) - set(self._folders)))

    def get(self, name: str) -> T:
        """The plug-in of that name; ConfigError when there is none or it does not import."""
        if name not in self.names():
            raise ConfigError(Fault(f"unknown {self.kind} '{name}'", fix=f"known: {', '.join(self.names())}"))
        try:
            if name in self._folders:
                found: T = getattr(importlib.import_module(f"{self.folder}.{name}.{self.module}"), self.kind)
            else:
                found = self._entry_points[name].load()
        except (ImportError, AttributeError) as error:
            raise ConfigError(Fault(f"{self.kind} '{name}' does not load: {error}")) from error
        return found
