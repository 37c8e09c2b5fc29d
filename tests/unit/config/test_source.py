from __future__ import annotations

import pytest

from flagvega.config.source import scan, scan_value
from flagvega.errors import ConfigError


def _scan(tmp_path, text: str):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    return scan(path)


def test_every_key_has_its_line_also_in_lists_and_through_merges(tmp_path):
    text = "a: &base\n  x: 1\n  y: 2\nb:\n  <<: *base\n  y: 3\nc:\n- {d: 1}\n- d: 2\n"

    assert _scan(tmp_path, text).lines == {
        "a": 1, "a.x": 2, "a.y": 3, "b": 4, "b.y": 6, "b.x": 2, "c": 7, "c[0]": 8, "c[0].d": 8, "c[1]": 9, "c[1].d": 9,
    }  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['true']",
        "!!python/name:os.system",
        "!!python/object/apply:pathlib.Path ['x']",
        "!!binary aGk=",
        "!!set {a}",
        "!own x",
    ],
)
def test_tags_are_refused_at_any_depth(value, tmp_path):
    faults = _scan(tmp_path, f"a:\n  b:\n  - c: {value}\n").faults

    assert [fault.where.rpartition("/")[2] for fault in faults] == ["a.yaml:3 a.b[0].c"]
    assert "is refused" in faults[0].what


@pytest.mark.parametrize("key", ["_target_", "_partial_", "_args_", "_recursive_", "_convert_"])
def test_keys_that_make_objects_are_refused_at_any_depth(key, tmp_path):
    faults = _scan(tmp_path, f"a:\n- b: {{{key}: pathlib.Path.touch}}\n").faults

    assert [fault.where.rpartition("/")[2] for fault in faults] == [f"a.yaml:2 a[0].b.{key}"]


@pytest.mark.parametrize(
    "text",
    ["a: &a [*a]\n", "a: &a {<<: *a}\n", "a: &a {b: &b {<<: *a}}\n", "a: " + "[" * 70 + "]" * 70],
    ids=["list", "merge", "mutual merge", "depth"],
)
def test_a_value_inside_itself_is_refused(text, tmp_path):
    with pytest.raises(ConfigError, match=r"a\.yaml:1"):
        _scan(tmp_path, text)


def test_aliases_that_multiply_are_refused(tmp_path):
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]" for i in range(1, 9)]

    with pytest.raises(ConfigError, match="too large"):
        _scan(tmp_path, "\n".join(lines))


@pytest.mark.parametrize(
    ("text", "line", "hint"),
    [
        ("a: 1\nb: {c\n", 2, ""),
        ("a: 1\n\tb: 1\n", 2, "not with tabs"),
        ("a:\n  b:1\n  c: 2\n", 2, "a blank belongs behind the colon"),
        ("a: 'x\n", 1, ""),
        ("a: 1\n---\nb: 2\n", 2, ""),
    ],
)
def test_what_is_not_yaml_is_told_with_its_line(text, line, hint, tmp_path):
    with pytest.raises(ConfigError) as caught:
        _scan(tmp_path, text)

    [fault] = caught.value.faults
    assert f"a.yaml:{line}" in fault.where
    assert hint in fault.fix


def test_text_that_is_not_utf8_is_told(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"a: \xff\n")

    with pytest.raises(ConfigError, match="UTF-8"):
        scan(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "bad"), [("{a: !!python/name:x }", True), ("[{_target_: x}]", True), ("a: b: c", False)]
)
def test_values_of_the_command_line_are_scanned_too(text, bad):
    assert bool(scan_value(text, "command line: a")) == bad
