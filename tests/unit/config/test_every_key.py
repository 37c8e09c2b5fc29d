"""Every engine argument, misspelt, mistyped, misplaced and given twice: the right answer at the right line."""

from __future__ import annotations

import random
import string

import pytest
import yaml

from backends.megatron.arguments import keys
from flagvega.config.experiment import TOP_LEVEL
from flagvega.config.nearest import nearest

WRONG = {"bool": "maybe", "int": "four", "float": "fast", "str": [["a"]], "any": None}
TWO = {"bool": (True, False), "int": (1, 2), "float": (0.5, 0.25), "str": ("a", "b"), "any": ("a", "b")}


def test_one_random_edit_names_the_original_first():
    rng = random.Random(0)
    edits = [(name, _edit(name, rng)) for name in keys() if len(name) >= 5 for _ in range(2)]
    edits = [(name, edited) for name, edited in edits if edited not in keys()]

    missed = [(name, edited) for name, edited in edits if nearest(edited, keys())[:1] != (name,)]

    assert len(edits) > 1000
    assert len(missed) <= 0.05 * len(edits), missed


def test_a_wrong_type_is_found_for_every_key(write, faults):
    wrong = {name: _wrong(key.type) for name, key in keys().items() if key.type != "any"}
    lines = _write_model(write, wrong)

    found = {fault.where: fault.what for fault in faults()}

    assert found.keys() == {f"conf/train/tiny.yaml:{lines[name]} train.model.{name}" for name in wrong}
    assert all("expected" in what or "cannot be" in what for what in found.values())


@pytest.mark.parametrize(("parent", "indent"), [("experiment", "  "), ("experiment.task", "    "), ("", "")])
def test_a_wrong_block_is_found_for_every_key(parent, indent, write, faults):
    head = "defaults: [{train: tiny}, _self_]\nexperiment:\n  exp_name: tiny\n"
    head += "  task:\n" if parent.endswith("task") else ""
    names = [name for name in keys() if parent or name not in TOP_LEVEL]
    write(head + "".join(f"{indent}{name}: 1\n" for name in names))

    found = {fault.where: fault.fix for fault in faults()}

    first = head.count("\n") + 1
    prefix = f"{parent}." if parent else ""
    assert found.keys() == {f"conf/exp.yaml:{first + i} {prefix}{name}" for i, name in enumerate(names)}
    assert all("an engine argument: write it" in fix for fix in found.values())


def test_a_duplicate_leaf_is_found_for_every_key(write, faults):
    pairs = {name: key.choices or TWO[key.type.removesuffix("_list")] for name, key in keys().items()}
    pairs = {name: pair for name, pair in pairs.items() if len(pair) > 1}
    first = {name: pair[0] for name, pair in pairs.items()}
    again = {name: pair[1] for name, pair in pairs.items()}
    lines = _write_model(write, first, again)

    found = {fault.where: fault.what for fault in faults() if "given twice" in fault.what}

    assert found.keys() == {f"conf/train/tiny.yaml:{lines[name]} train.system.{name}" for name in pairs}
    assert all(f"train.model.{name}, and" in what for name, what in zip(pairs, found.values(), strict=True))


def test_a_leaf_given_twice_with_one_value_is_fine(write, load):
    write(task="system: {seed: 7}\nmodel: {seed: 7, optimizer: {seed: '7'}}\ndata: {}\n")

    assert load().arguments == {"seed": 7}


def _write_model(write, model: dict, system: dict | None = None) -> dict[str, int]:
    """Writes a task, a key a line; the line of each key, in ``system`` if that is given."""
    head = ["model:", *(_line(name, value) for name, value in model.items()), "system:"]
    body = [_line(name, value) for name, value in (system or {}).items()]
    write(task="\n".join([*head, *(body or ["  {}"])]) + "\n")
    start = len(head) + 1 if system else 2
    return {name: start + i for i, name in enumerate(system or model)}


def _line(name: str, value: object) -> str:
    return f"  {name}: " + yaml.safe_dump(value, default_flow_style=True).splitlines()[0]


def _wrong(kind: str) -> object:
    value = WRONG[kind.removesuffix("_list")]
    return [[value]] if kind.endswith("_list") else value


def _edit(word: str, rng: random.Random) -> str:
    i, letter = rng.randrange(len(word)), rng.choice(string.ascii_lowercase)
    swapped = word[: i - 1] + word[i] + word[i - 1] + word[i + 1 :] if i else word[1] + word[0] + word[2:]
    return rng.choice(
        [word[:i] + letter + word[i:], word[:i] + word[i + 1 :], word[:i] + letter + word[i + 1 :], swapped]
    )
