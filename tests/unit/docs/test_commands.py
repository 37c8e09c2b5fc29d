"""The commands that the pages print, run as printed, in a copy of the checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.checkout import copy_project
from tests.conftest import ROOT

PAGES = ("README.md", "docs/train.md")
BLOCK = re.compile(r"^```(bash|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
MARK = "\x1e"


@dataclass
class Shown:
    """A command of a page and the lines of output that the page shows under it."""

    command: str
    lines: list[str]


def shown(page: str) -> list[Shown]:
    """All commands of a page in order: the lines of ``bash`` blocks, the ``$`` lines of ``console`` blocks."""
    found: list[Shown] = []
    for language, text in BLOCK.findall((ROOT / page).read_text()):
        for line in text.splitlines():
            if language == "bash" or line.startswith("$ "):
                found.append(Shown(line.removeprefix("$ "), []))
            elif line.strip() not in ("", "..."):
                found[-1].lines.append(" ".join(line.split()))
    return found


def run_all(commands: list[str], folder: Path) -> list[tuple[str, int]]:
    """Output and exit code of each command, all typed into one shell, with the code of that folder."""
    env = os.environ | {"PYTHONPATH": str(folder), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    script = "".join(f'{command}\nlast=$?; printf "{MARK}%s{MARK}" $last; (exit $last)\n' for command in commands)
    done = subprocess.run(
        ["bash"], input=script, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    parts = done.stdout.split(MARK)
    return [(output, int(code)) for output, code in zip(parts[0::2], parts[1::2], strict=False)]


def missing_lines(lines: list[str], output: str) -> list[str]:
    """The lines that the output does not have, in their order."""
    rest = iter(" ".join(line.split()) for line in output.splitlines())
    return [line for line in lines if line not in rest]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_commands(page: str) -> None:
    assert shown(page)


def test_the_dryruns_of_the_readme_print_what_it_shows(tmp_path: Path) -> None:
    copy_project(tmp_path)
    dryruns = [each for each in shown("README.md") if "action=dryrun" in each.command]
    results = run_all([each.command for each in dryruns], tmp_path)
    for each, (output, _) in zip(dryruns, results, strict=True):
        assert each.lines, each.command
        assert missing_lines(each.lines, output) == [], f"$ {each.command}\n{output}"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_runs_as_printed(page: str, tmp_path: Path) -> None:
    if subprocess.run([ROOT / "tools" / "venv.sh", "--check"]).returncode:
        pytest.skip("the environment is not the one that `make` keeps: the copy would install itself into it")
    copy_project(tmp_path)
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    commands = [each for each in shown(page) if each.command != "make test"]  # which runs this very test
    results = run_all([each.command for each in commands], tmp_path)
    assert len(results) == len(commands)
    following = [each.command for each in commands[1:]] + [""]
    for each, after, (output, code) in zip(commands, following, results, strict=True):
        assert code == 0 or after == "echo $?", f"$ {each.command}\n{output}"
        assert missing_lines(each.lines, output) == [], f"$ {each.command}\n{output}"
