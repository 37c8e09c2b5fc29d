from __future__ import annotations

from pathlib import Path

import pytest

from flagvega.config.starter import write_starter
from flagvega.errors import ConfigError


def test_the_pair_to_start_from_loads_as_it_is(tmp_path, monkeypatch, load):
    monkeypatch.chdir(tmp_path)

    paths = write_starter(Path("conf"), "exp")

    assert [str(path) for path in paths] == ["conf/exp.yaml", "conf/train/exp.yaml"]
    spec = load()
    assert (spec.name, spec.exp_dir, spec.warnings) == ("exp", tmp_path / "outputs/exp", ())
    assert spec.arguments["mock_data"] is True


@pytest.mark.parametrize("there", ["conf/exp.yaml", "conf/train/exp.yaml"])
def test_a_file_that_is_there_is_never_touched(there, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(there).parent.mkdir(parents=True)
    Path(there).write_text("mine")

    with pytest.raises(ConfigError, match=there):
        write_starter(Path("conf"), "exp")

    assert [str(path) for path in Path().rglob("*.yaml")] == [there]
    assert Path(there).read_text() == "mine"


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-x", "a b"])
def test_a_name_that_cannot_name_a_file_is_refused(name, tmp_path):
    with pytest.raises(ConfigError, match="cannot name a file"):
        write_starter(tmp_path, name)
