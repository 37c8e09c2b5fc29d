"""What an action is called with, and what it answers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from flagvega.cluster.chips import misspelt_chips
from flagvega.config.command import Command
from flagvega.config.draft import Draft
from flagvega.config.load import find_exp_dir, judge, judge_services, read_experiment
from flagvega.config.report import Report
from flagvega.config.spec import Spec
from flagvega.engine import Engine, engines
from flagvega.errors import ConfigError, Fault
from flagvega.server import Server, servers

OPTIONS: Mapping[str, str] = {
    "output": "json: one JSON document on stdout and nothing else",
    "run_dir": "the folder of a run, for status, logs and stop: no configuration is read then",
    "detach": "true: run in the background and return at once",
    "force": "true: stop without waiting for a checkpoint",
    "grace_s": "seconds that ranks get to save when a run is stopped (120)",
    "rank": "whose log: a rank's number, all (default) or launcher",
    "trial": "whose logs of a search: a trial's number (the running or the last one)",
    "lines": "how many last lines of a log (20)",
    "follow": "true: go on showing a log as it grows",
    "steps": "how many steps action=test takes (5)",
    "to": "the folder that action=convert writes (huggingface/ in the run's folder)",
    "checkpoint": "what action=convert reads: a checkpoint, or a folder of them (the run's own, the newest good one)",
    "dtype": "fp32, bf16 or fp16: the element type that action=convert writes (that of the run)",
    "micro_batches": "samples of a rank at which action=profile measures (1,2,4)",
    "tp": "1,2: tensor parallelism at which action=profile measures services (their own)",
    "roles": "true: action=profile measures as well what handing prompts over between two instances takes",
    "merge": "a.json,b.json: action=env makes one cluster file of what it printed (output=json) on several hosts",
    "construct": "false: dryrun does not ask the engine's own classes, which takes seconds",
    "debug": "true: show the traceback of a mistake",
}


@dataclass(frozen=True)
class Answer:
    """What an action found: a document for programs, the same to be read, and an exit code."""

    document: Mapping[str, Any]
    shown: tuple[RenderableType | str, ...] = ()
    exit_code: int = 0


@dataclass(frozen=True)
class Call:
    """A command line on its way to an action."""

    command: Command
    console: Console
    """stderr: what is said meanwhile."""

    @property
    def say(self) -> Callable[[str], None]:
        """Tell the user something that is not the answer."""
        return lambda text: self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @property
    def json(self) -> bool:
        """Whether the answer is to be JSON."""
        return self.choice("output", ("text", "json"), "text") == "json"

    @cached_property
    def draft(self) -> Draft:
        """The configuration as composed, not judged yet."""
        return read_experiment(self.command)

    @cached_property
    def engine(self) -> Engine:
        """The engine that trains."""
        if self.serves:
            fix = "actions for serving: run, dryrun, profile, plan, stop, status, logs"
            raise ConfigError(Fault("the task is to serve, and this action is for training", "experiment.task", fix))
        return engines.get(self.draft.backend)

    @property
    def serves(self) -> bool:
        """Whether the task is to serve, not to train."""
        return self.draft.serves

    @cached_property
    def server(self) -> Server:
        """The engine that serves; the services of one run have one."""
        names = list(dict.fromkeys(service.engine for service in self.spec.services))
        if len(names) > 1:
            raise ConfigError(Fault(f"services of one run have one engine, not {', '.join(names)}", "serve"))
        return servers.get(names[0])

    @cached_property
    def spec(self) -> Spec:
        """The configuration, every key of it judged; warnings are said once."""
        draft = self.draft
        try:
            if self.serves:
                spec = judge_services(draft, lambda name: servers.get(name).keys())
            else:
                spec = judge(draft, lambda name: engines.get(name).keys())
        except ConfigError as error:
            chips = misspelt_chips(draft.values, Report(draft.places).place)
            raise ConfigError([*error.faults, *chips]) from error
        for warning in spec.warnings:
            self.say(f"warning: {warning}")
        return spec

    @cached_property
    def run_dir(self) -> Path:
        """The run directory, absolute: the option, else that of the experiment, however wrong the rest of it is."""
        if given := self.command.options.get("run_dir"):
            return Path(os.path.abspath(given))
        if self.command.config_path is None:
            fix = "give run_dir=FOLDER, or --config-path and --config-name"
            raise ConfigError(Fault("which run?", "command line", fix))
        return find_exp_dir(self.draft)

    def flag(self, name: str, default: bool = False) -> bool:
        """A yes or no among the options."""
        return self.choice(name, ("true", "false"), str(default).lower()) == "true"

    def number(self, name: str, default: int) -> int:
        """A count among the options."""
        given = self.command.options.get(name, str(default))
        if not given.isdecimal():
            raise ConfigError(Fault(f"{given!r} is not a whole number", f"command line: {name}"))
        return int(given)

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        """One of several words among the options."""
        given = self.command.options.get(name, default).lower()
        if given not in choices:
            raise ConfigError(Fault(f"{given!r} is not known", f"command line: {name}", f"one of {', '.join(choices)}"))
        return given
