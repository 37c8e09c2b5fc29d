"""vLLM on an emulated chip: real computation on the CPU, at the pace and within the memory of a made-up chip.

Runs in vLLM's own environment, which has no flagvega: it imports nothing of it.
"""

from __future__ import annotations

import os

CHIP_ENV = "FLAGVEGA_EMULATED_CHIP"
PLACE_ENV = "FLAGVEGA_EMULATED_PLACE"
"""Number of the instance among those of its host."""


def register() -> str | None:
    """vLLM asks this whether the platform is here: its class, where a chip is to be emulated."""
    return "flagvega_emulated.platform.EmulatedPlatform" if os.environ.get(CHIP_ENV) else None
