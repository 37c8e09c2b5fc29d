"""``action=logs``: the last lines of the ranks' logs, and on as they grow."""

from __future__ import annotations

import time
from pathlib import Path

from flagvega.actions.call import Answer, Call
from flagvega.errors import ConfigError, Fault
from flagvega.run.directory import Run, RunDirectory, find_runs
from flagvega.tune.folder import read_search

POLL_S = 0.2


def act(call: Call) -> Answer:
    """Show the log of one rank, of all, or of what launched them."""
    num_lines = call.number("lines", 20)
    files = _find_logs(call)
    tails = {name: _tail(path, num_lines) for name, path in files.items()}
    document = {name: {"file": str(files[name]), "lines": lines} for name, lines in tails.items()}
    shown = tuple("\n".join([f"==> {files[name]} <==", *lines]) for name, lines in tails.items())
    if not call.flag("follow"):
        return Answer({"run_dir": str(call.run_dir), "logs": document}, shown)
    if call.json:
        raise ConfigError(Fault("one JSON document never ends while it follows", "command line: follow"))
    print(*shown, sep="\n", flush=True)
    _follow(files, _directories(call))
    return Answer({})


def _directories(call: Call) -> list[RunDirectory]:
    """The runs of the directory; of a search the trial that is named, else the newest where nothing else has run."""
    searched = read_search(call.run_dir)
    found = find_runs(call.run_dir)
    if "trial" not in call.command.options and (found or searched is None):
        return found
    trials = {int(path.name): path for path in searched[0].runs()} if searched else {}
    number = call.number("trial", max(trials, default=0))
    if number not in trials:
        known = f"there are {', '.join(map(str, trials))}" if trials else ""
        raise ConfigError(Fault(f"there is no trial {number}", "command line: trial", known))
    return find_runs(trials[number])


def _find_logs(call: Call) -> dict[str, Path]:
    wanted = call.command.options.get("rank", "all")
    directories = _directories(call)
    if not directories:
        raise ConfigError(Fault("nothing has run here", str(call.run_dir)))
    found: dict[str, Path] = {}
    for directory in directories:
        run = directory.read()
        assert run is not None
        found |= {str(rank): directory.log_file(run.host, rank) for rank in run.ranks}
        found[_launcher(run)] = directory.agent_log(run.host)
    if wanted == "all":
        return {name: path for name, path in found.items() if name.isdecimal()}
    if wanted not in found:
        raise ConfigError(
            Fault(f"there is no rank {wanted!r}", "command line: rank", f"one of all, {', '.join(found)}")
        )
    return {wanted: found[wanted]}


def _launcher(run: Run) -> str:
    return f"launcher-{run.node}" if run.node else "launcher"


def _tail(path: Path, num_lines: int) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return lines[-num_lines:] if num_lines else []


def _follow(files: dict[str, Path], directories: list[RunDirectory]) -> None:
    """Print what is added, each line with its rank when there are several, until the run has ended."""
    offsets = {name: path.stat().st_size if path.exists() else 0 for name, path in files.items()}
    while True:
        ended = all((run := directory.read()) is None or run.finished or not run.alive for directory in directories)
        for name, path in files.items():
            prefix = f"[{name}] " if len(files) > 1 else ""
            for line in _grown(path, offsets, name):
                print(prefix + line, flush=True)
        if ended:
            return
        time.sleep(POLL_S)


def _grown(path: Path, offsets: dict[str, int], name: str) -> list[str]:
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(offsets[name])
        data = file.read()
    end = data.rfind(b"\n") + 1
    offsets[name] += end
    return data[:end].decode(errors="replace").splitlines()
