from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from backends.megatron import fields
from backends.megatron.engine import engine

RUN = [sys.executable, "run.py", "--config-path", "examples/gpt/conf", "--config-name", "one", "action=run"]


def test_what_is_installed_here_is_supported() -> None:
    assert list(engine.check_host()) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("MAJOR = 0\nMINOR = 17\nPATCH = 1\n", "megatron-core 0.17.1 is not supported"),
        ("MAJOR = 0\nMINOR = 15\nPATCH = 0\n", "megatron-core 0.15.0 is not supported"),
        ("MAJOR = 0\nMINOR = 16\nPATCH = 7\n", ""),
        ("", "unknown version"),
    ],
)
def test_a_megatron_core_of_another_interface_is_refused_with_what_to_install(
    tmp_path: Path, repository: Path, text: str, words: str
) -> None:
    core = tmp_path / "megatron" / "core"
    core.mkdir(parents=True)
    (core / "model_parallel_config.py").touch()
    if text:
        (core / "package_info.py").write_text(text)
    question = "from backends.megatron.engine import engine; print(*engine.check_host())"
    env = {"PYTHONPATH": f"{tmp_path}:{repository}"}
    done = subprocess.run([sys.executable, "-c", question], env=env, capture_output=True, text=True, check=True)
    assert words in done.stdout
    assert ("pip install megatron-core==0.16.1" in done.stdout) == bool(words)


def test_a_run_is_refused_before_anything_starts(tmp_path: Path, repository: Path) -> None:
    core = tmp_path / "megatron" / "core"
    core.parent.mkdir()
    installed = fields.installed()
    assert installed is not None
    core.mkdir()
    for path in installed.iterdir():
        (core / path.name).symlink_to(path)
    (core / "package_info.py").unlink()
    (core / "package_info.py").write_text("MAJOR = 0\nMINOR = 17\nPATCH = 1\n")
    argv = [*RUN, f"experiment.exp_dir={tmp_path}/out"]
    env = {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(argv, cwd=repository, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    assert "pip install megatron-core==0.16.1" in done.stderr
    assert not (tmp_path / "out").exists()
