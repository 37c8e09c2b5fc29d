"""The command line: finds the action, gives it the call, shows the answer."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from flagvega.actions.call import OPTIONS, Answer, Call
from flagvega.config.command import help_text, parse
from flagvega.config.load import choose_action
from flagvega.errors import ExitCode, FlagvegaError

ACTIONS: Mapping[str, str] = {
    "run": "start what the YAML says (train, serve, infer) and follow it to the end; detach=true returns at once",
    "dryrun": "show the plan and every command, and start nothing",
    "plan": "choose the layout, or the instances of a service: a table, the reasons, plan.json in the run's folder",
    "profile": "measure chips and links, and write profile.json, by which later plans go",
    "estimate": "predict time and memory of the layout in the YAML",
    "auto_tune": "find the fastest configuration, of a training run or of a service, by few trials",
    "convert": "the weights of a run as a HuggingFace folder: to=, checkpoint=, dtype=",
    "stop": "let a run save, or answer what it has begun, and end every process of it",
    "status": "what a run does now (also: query)",
    "query": "the same as status",
    "logs": "the last lines of the ranks' logs: rank=, lines=, follow=true",
    "test": "train a few steps and check them",
    "env": "chips, drivers, versions and links of this host",
    "schema": "the JSON schema of every key",
    "init": "write a commented YAML to start from",
}
PLAIN_WIDTH = 160
"""Columns of a table that no terminal limits."""
MODULES: Mapping[str, str] = {"query": "status"}
"""Actions whose module has another name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Act on a command line; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        answer = _answer(words)
    except FlagvegaError as error:
        if "debug=true" in words:
            raise
        return _show_error(error, "output=json" in words)
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)
    return answer.exit_code


def _answer(words: Sequence[str]) -> Answer:
    command = parse(words, ACTIONS, OPTIONS)
    if command.help:
        print(help_text(ACTIONS, OPTIONS))
        return Answer({})
    call = Call(command, Console(stderr=True))
    as_json = call.json
    action = command.action or choose_action(command, call.draft, ACTIONS)
    module = importlib.import_module(f"flagvega.actions.{MODULES.get(action, action)}")
    answer: Answer = module.act(call)
    if as_json:
        print(json.dumps(_strict(answer.document), indent=2, ensure_ascii=False))
    else:
        console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
        for part in answer.shown:
            console.print(part, markup=False, highlight=False, soft_wrap=isinstance(part, str))
    return answer


def _show_error(error: FlagvegaError, as_json: bool) -> int:
    if as_json:
        faults = [{"what": fault.what, "where": fault.where, "fix": fault.fix} for fault in error.faults]
        print(
            json.dumps({"error": type(error).__name__, "exit_code": int(error.exit_code), "faults": faults}, indent=2)
        )
    else:
        print(error, file=sys.stderr)
    return int(error.exit_code)


def _strict(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: they become null."""
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
