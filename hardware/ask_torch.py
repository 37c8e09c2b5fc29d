"""Run as a script, in a process of its own: what torch sees of a vendor's devices, as JSON on the last line.

What torch sees is what a run gets: visible-devices variables are honoured, and a card that is two
devices counts as two. Arguments: the package that brings the device ("" if none), torch's namespace.
"""

from __future__ import annotations

import importlib
import json
import sys


def main(module: str, namespace: str) -> None:
    """Print a list of ``{"name", "memory_bytes"}``, one for each device."""
    import torch

    if module:
        importlib.import_module(module)
    devices = getattr(torch, namespace)
    found = []
    for i in range(devices.device_count() if devices.is_available() else 0):
        properties = devices.get_device_properties(i)
        found.append({"name": devices.get_device_name(i), "memory_bytes": getattr(properties, "total_memory", None)})
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
