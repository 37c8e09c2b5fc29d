"""The rank side of nothing: there is none."""

from __future__ import annotations

from typing import Any, NoReturn

from flagvega.errors import PreflightError
from flagvega.platform import Device


class NullDevice(Device):
    """Refuses to be opened."""

    type = "null"

    def open(self, chip: str, local: int) -> NoReturn:
        """Refuse.

        :raises PreflightError: always.
        """
        raise PreflightError(f"chip '{chip}' runs nothing: use it with action=dryrun")

    @property
    def namespace(self) -> Any:
        """Nothing answers ``torch.cuda``'s questions."""
        return None


device = NullDevice()
