"""The command line: where the YAML is, what to change in it, and which action to take."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from flagvega.config.nearest import edit_distance, nearest
from flagvega.errors import ConfigError, Fault

USAGE: Final = "python run.py --config-path DIR --config-name NAME [action=ACTION] [key=value ...]"

_FLAGS: Final[Mapping[str, str]] = {
    "--config-path": "config_path",
    "-cp": "config_path",
    "--config-name": "config_name",
    "-cn": "config_name",
}
_HYDRA_FLAGS: Final[Mapping[str, str]] = {
    "--cfg": "action=dryrun shows what would run",
    "-c": "action=dryrun shows what would run",
    "--resolve": "action=dryrun shows what would run",
    "--info": "action=env shows what is here",
    "-i": "action=env shows what is here",
    "--multirun": "one command is one run: loop over it in your shell",
    "-m": "one command is one run: loop over it in your shell",
    "--run": "write action=run",
    "-r": "write action=run",
    "--config-dir": "write --config-path",
    "-cd": "write --config-path",
    "--package": "write the whole key in each override",
    "-p": "write the whole key in each override",
}


@dataclass(frozen=True)
class Override:
    """``key=value``, ``+key=value`` or ``~key``; the value as it was typed."""

    key: str
    value: str = ""
    remove: bool = False

    @property
    def place(self) -> str:
        """How faults name it."""
        return f"command line: {self.key}"


@dataclass(frozen=True)
class Command:
    """A command line, taken apart."""

    config_path: str | None = None
    config_name: str | None = None
    overrides: tuple[Override, ...] = ()
    action: str | None = None
    """As given on the command line; a YAML may name one too."""
    options: Mapping[str, str] = field(default_factory=dict)
    """What the actions themselves take: ``output=json`` and the like."""
    help: bool = False


def parse(argv: Sequence[str], actions: Mapping[str, str], options: Mapping[str, str]) -> Command:
    """Take a command line apart; ``actions`` and ``options`` map each name to one line about it.

    :raises ConfigError: with every word that could not be understood.
    """
    words, faults = list(argv), list[Fault]()
    given: dict[str, str] = {}
    overrides: list[Override] = []
    wants_help = False
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        if word in ("--help", "-h", "help"):
            wants_help = True
        elif flag in _FLAGS:
            if not equals and (not words or words[0].startswith("-")):
                faults.append(Fault(f"'{flag}' needs a value", "command line", USAGE))
            else:
                given[_FLAGS[flag]] = value if equals else words.pop(0)
        elif word.startswith("-"):
            faults.append(_unknown_flag(flag))
        elif override := _override(word):
            overrides.append(override)
        else:
            faults.append(_not_an_override(word, actions))
    action, taken, overrides = _split(overrides, options)
    faults += [fault for each in overrides for fault in _near_option(each, options)]
    if action is not None and action not in actions:
        faults.append(unknown_action(action, actions, "command line: action"))
    if faults and not wants_help:
        raise ConfigError(faults)
    return Command(given.get("config_path"), given.get("config_name"), tuple(overrides), action, taken, wants_help)


def unknown_action(action: str, actions: Mapping[str, str], place: str) -> Fault:
    """The fault of an action that there is not, with the list of those that there are."""
    found = nearest(action, actions, 1)
    hint = f"did you mean '{found[0]}'? The actions:" if found else "The actions:"
    return Fault(f"unknown action '{action}'", place, "\n    ".join([hint, *_table(actions)]))


def help_text(actions: Mapping[str, str], options: Mapping[str, str]) -> str:
    """What ``--help`` prints."""
    return "\n".join(
        [
            "Train and serve one model over any mix of chips.",
            "",
            f"usage: {USAGE}",
            "",
            "  --config-path DIR    folder of the experiment YAML, looked for from the working directory, then in the",
            "                       folder of flagvega (-cp)",
            "  --config-name NAME   its name without .yaml; not needed when the folder holds only one (-cn)",
            "  key=value            change or add a key: train.system.tensor_model_parallel_size=2",
            "  ~key                 remove a key: ~experiment.cmds",
            "  group=name           another file of a group: train=llama3_70b",
            "",
            "actions (action=run unless the YAML names another):",
            *_table(actions),
            "",
            "options:",
            *_table(options),
            "",
            "examples:",
            "  python run.py --config-path examples/llama/conf --config-name demo",
            "  python run.py --config-path examples/llama/conf --config-name demo action=dryrun output=json",
            "  python run.py --config-path examples/gpt/conf --config-name one train.model.train_iters=5",
            "  python run.py --config-path examples/llama/conf --config-name demo action=stop",
            "",
            "Every key: docs/configuration.md, or action=schema.",
        ]
    )


def _table(rows: Mapping[str, str]) -> list[str]:
    width = max((len(name) for name in rows), default=0)
    return [f"  {name:<{width}}  {text}" for name, text in rows.items()]


def _override(word: str) -> Override | None:
    """The override that a word is, if it is one; the value is everything behind the first ``=``."""
    if word.startswith("~"):
        key, equals, _ = word[1:].partition("=")
        return None if equals or not key else Override(key, remove=True)
    key, equals, value = word.lstrip("+").partition("=")
    return Override(key.strip(), value) if equals and key.strip() else None


def _split(overrides: list[Override], options: Mapping[str, str]) -> tuple[str | None, dict[str, str], list[Override]]:
    action = next((each.value for each in reversed(overrides) if each.key == "action" and not each.remove), None)
    taken = {each.key: each.value for each in overrides if each.key in options}
    return action, taken, [each for each in overrides if each.key != "action" and each.key not in options]


def _near_option(override: Override, options: Mapping[str, str]) -> list[Fault]:
    """``detatch=true`` is meant for the action: the YAML has no key that is one letter off an option."""
    near = [name for name in ("action", *options) if edit_distance(override.key, name) == 1]
    fix = f"did you mean {near[0]}={override.value}?" if near else ""
    return [Fault(f"unknown option '{override.key}'", override.place, fix)] if near else []


def _unknown_flag(flag: str) -> Fault:
    found = difflib.get_close_matches(flag, _FLAGS, 1)
    if flag in _HYDRA_FLAGS:
        return Fault(f"'{flag}' is hydra's and not served", "command line", _HYDRA_FLAGS[flag])
    return Fault(f"unknown option '{flag}'", "command line", f"did you mean '{found[0]}'?" if found else USAGE)


def _not_an_override(word: str, actions: Mapping[str, str]) -> Fault:
    if word in actions:
        fix = f"write action={word}"
    elif word.endswith((".yaml", ".yml")):
        folder, _, name = word.rpartition("/")
        fix = f"write --config-path {folder or '.'} --config-name {name.rsplit('.', 1)[0]}"
    else:
        fix = f"write key=value (to remove a key: ~key)\n    {USAGE}"
    return Fault(f"'{word}' is not an override", "command line", fix)
