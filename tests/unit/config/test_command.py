from __future__ import annotations

import pytest

from flagvega.config.command import Override, help_text, parse
from flagvega.errors import ConfigError

ACTIONS = {"run": "start and follow a run", "dryrun": "show what would run", "stop": "end a run"}
OPTIONS = {"output": "json: one JSON document on stdout", "detach": "true: return at once"}


def test_a_command_line_is_taken_apart():
    command = parse(
        ["--config-path", "a b", "--config-name=c", "action=stop", "output=json", "x.y=1=2", "+z=[1]", "~w"],
        ACTIONS,
        OPTIONS,
    )

    assert (command.config_path, command.config_name, command.action) == ("a b", "c", "stop")
    assert command.options == {"output": "json"}
    assert command.overrides == (Override("x.y", "1=2"), Override("z", "[1]"), Override("w", remove=True))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["action=dry_run"], "did you mean 'dryrun'"),
        (["actoin=run"], "action=run"),
        (["detatch=true"], "detach=true"),
        (["run"], "write action=run"),
        (["examples/gpt/conf/one.yaml"], "--config-path examples/gpt/conf --config-name one"),
        (["--config-pth", "x=1"], "'--config-path'"),
        (["--config-path"], "needs a value"),
        (["--config-path", "--config-name", "x"], "needs a value"),
        (["--multirun"], "loop over it"),
        (["nonsense"], "key=value"),
        (["=1"], "key=value"),
        (["~a=1"], "~key"),
    ],
)
def test_a_word_that_cannot_be_understood_is_told(words, says):
    with pytest.raises(ConfigError) as caught:
        parse(words, ACTIONS, OPTIONS)

    assert caught.value.exit_code == 2
    assert says in str(caught.value)


def test_an_unknown_action_lists_every_action_with_its_line():
    with pytest.raises(ConfigError) as caught:
        parse(["action=fly"], ACTIONS, OPTIONS)

    assert all(name in str(caught.value) and text in str(caught.value) for name, text in ACTIONS.items())


@pytest.mark.parametrize("word", ["--help", "-h", "help"])
def test_help_is_asked_for_whatever_else_is_wrong(word):
    assert parse([word, "action=fly"], ACTIONS, OPTIONS).help


def test_help_lists_actions_options_and_examples():
    text = help_text(ACTIONS, OPTIONS)

    assert all(name in text and line in text for name, line in (ACTIONS | OPTIONS).items())
    assert "examples/llama/conf --config-name demo" in text
