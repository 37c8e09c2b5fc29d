from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools import find_namespace_packages

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
REQUIREMENTS = sorted((ROOT / "requirements").glob("*.txt"))
SERVING = [file for file in REQUIREMENTS if file.name.startswith("serve-")]
ENVIRONMENTS = [[file for file in REQUIREMENTS if file not in SERVING], *([file] for file in SERVING)]
"""Files that are installed side by side; vLLM has an environment of its own."""


def pins(file: Path) -> dict[str, str]:
    """Version of every package that a requirements file names, included files too."""
    found: dict[str, str] = {}
    for line in file.read_text().splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("-r "):
            found |= pins(file.parent / line[3:])
        elif line:
            requirement = Requirement(line)
            found[canonicalize_name(requirement.name)] = str(requirement.specifier)
    return found


@pytest.mark.parametrize("file", REQUIREMENTS, ids=lambda file: file.name)
def test_every_requirement_is_pinned_exactly(file: Path) -> None:
    loose = {name: pin for name, pin in pins(file).items() if not re.fullmatch(r"==[\w.]+", pin)}
    assert loose == {}


@pytest.mark.parametrize("files", ENVIRONMENTS, ids=lambda files: files[0].name)
def test_no_two_files_of_an_environment_pin_one_package_differently(files: list[Path]) -> None:
    seen: dict[str, str] = {}
    for file in files:
        for name, pin in pins(file).items():
            assert seen.setdefault(name, pin) == pin, f"{file.name}: {name}"


def test_the_pins_satisfy_what_the_package_asks_for() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    asked = [Requirement(line) for line in PROJECT["project"]["dependencies"] + extras["train"]]
    pinned = pins(ROOT / "requirements" / "train.txt") | pins(ROOT / "requirements" / "torch.txt")
    for requirement in asked:
        pin = pinned[canonicalize_name(requirement.name)].removeprefix("==")
        assert requirement.specifier.contains(pin), requirement


def test_the_engine_is_installed_in_the_version_that_is_pinned() -> None:
    pinned = pins(ROOT / "requirements" / "train.txt") | pins(ROOT / "requirements" / "torch.txt")
    for name in ("torch", "megatron-core", "hydra-core"):
        assert f"=={version(name).split('+')[0]}" == pinned[name]


def test_every_folder_with_code_is_a_package_that_gets_installed() -> None:
    include = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    packages = set(find_namespace_packages(str(ROOT), include=include))
    folders = {path.parent for top in ("flagvega", "backends", "hardware") for path in (ROOT / top).rglob("*.py")}
    assert {".".join(folder.relative_to(ROOT).parts) for folder in folders} <= packages
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_every_folder_of_a_vendor_is_found_by_the_registry() -> None:
    from flagvega.platform import platforms

    folders = {path.parent.name for path in (ROOT / "hardware").glob("*/chips.yaml")}
    assert folders <= set(platforms.names())
