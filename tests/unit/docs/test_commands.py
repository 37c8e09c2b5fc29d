"""The commands that the pages print: all are ones that there are; those of the tour run as printed, in a copy."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from flagvega.actions.call import OPTIONS, Call
from flagvega.cli import ACTIONS, main
from flagvega.config.command import parse
from flagvega.config.starter import write_starter
from flagvega.errors import ConfigError
from tests.checkout import copy_project, project_files
from tests.conftest import ROOT

PAGES = ("README.md", "docs/train.md")
"""Those whose commands are run."""
ALL_PAGES = [str(path) for path in project_files("*.md")]
BLOCK = re.compile(r"^```(bash|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
MARK = "\x1e"
LINE = re.compile(r"^(?:\$ | {4})?((?:python|make|pip) .+)")
INLINE = re.compile(r"`((?:python|make|pip install|tools/[^\s`]+) [^`\n]+)`")
MISTAKE = "train.model.num_layer=6"
"""What the tour gets wrong."""


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


@pytest.fixture
def in_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: an empty folder with the examples."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def printed(page: str) -> list[str]:
    """All commands of a page, run or not: lines of blocks, indented lines, a few words within a sentence."""
    found, in_block = [], False
    for line in (ROOT / page).read_text().splitlines():
        in_block ^= line.startswith("```")
        command = LINE.match(line) if in_block or line.startswith(" " * 4) else None
        found += [command[1]] if command else INLINE.findall(line)
    return found


def trouble(command: str) -> str:
    """Why a command cannot be run, from a folder with ``examples`` and ``conf``; empty where it can."""
    words = shlex.split(command.partition(">")[0], comments=True)
    match words:
        case ["python", "run.py", *rest]:
            return "" if MISTAKE in rest else run_trouble(rest)
        case ["python", *_, "-m", module, "--config", _]:
            path = ROOT / module.replace(".", "/") / "__main__.py"
            return "" if path.exists() else f"there is no {module}"
        case ["python", tool, *rest]:
            return tool_trouble(tool, rest)
        case ["make", *targets]:
            rules = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            return "" if set(targets) <= set(rules) else f"make knows {rules}"
        case ["pip", "install", "-r", file]:
            return "" if (ROOT / file).exists() else f"there is no {file}"
        case ["pip", "install", package]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            return "" if package in {f"flagvega[{name}]" for name in extras} else f"there are {list(extras)}"
        case [tool, *rest]:
            return tool_trouble(tool, rest)
    return "it is empty"


def run_trouble(words: list[str]) -> str:
    """Of the command line: its action, its options, and its configuration where that is not a run's own."""
    try:
        command = parse(words, ACTIONS, OPTIONS)
        where = command.config_path
        if where and not where.startswith("outputs/"):
            if where == "conf" and not Path(where, f"{command.config_name}.yaml").exists():
                write_starter(Path(where), str(command.config_name))
            assert Call(command, Console(quiet=True)).spec
    except ConfigError as error:
        return str(error)
    return ""


def tool_trouble(tool: str, words: list[str]) -> str:
    """Of a program of ours: its file, and that the file speaks of every option."""
    if not (ROOT / tool).exists():
        return f"there is no {tool}"
    text = (ROOT / tool).read_text()
    unknown = [word for word in words if word.startswith("--") and f'"{word}"' not in text]
    return f"{tool} has no {unknown}" if unknown else ""


@pytest.mark.parametrize("page", ALL_PAGES)
def test_every_command_of_a_page_is_one_that_there_is(page: str, in_checkout: Path) -> None:
    assert [(command, why) for command in printed(page) if (why := trouble(command))] == []


@pytest.mark.parametrize(
    "command",
    [
        "python run.py action=dry",
        "python run.py --config-path conf --config-name train plan.top=4",
        "python run.py --config-path examples/llama/conf --config-name nowhere",
        "python tools/nothing.py",
        "python tools/prepare_data.py --corpse python",
        "python -P -m flagvega.nothing --config x",
        "make nothing",
        "pip install -r requirements/nothing.txt",
        "pip install flagvega[nothing]",
        "tools/nothing.sh serve",
    ],
)
def test_a_command_that_there_is_not_is_found(command: str, in_checkout: Path) -> None:
    assert trouble(command)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_commands(page: str) -> None:
    assert shown(page)


def test_the_dryruns_of_the_readme_print_what_it_shows(capsys: pytest.CaptureFixture[str], in_checkout: Path) -> None:
    dryruns = [each for each in shown("README.md") if "action=dryrun" in each.command]
    assert dryruns
    for each in dryruns:
        main([*shlex.split(each.command)[2:], "construct=false"])  # the slow test asks the engine's classes too
        said = capsys.readouterr()
        assert each.lines, each.command
        assert missing_lines(each.lines, said.out + said.err) == [], f"$ {each.command}\n{said}"


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
