"""The installed product, far from its sources, beside folders with the names of its own packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from flagvega.records import read_json_lines
from tests.checkout import copy_project
from tests.conftest import ROOT

TRAP = "raise SystemExit('a folder of the user was imported in place of ours')\n"
TWO_RANKS = ["cluster.nodes=[{chip: cpu, devices: 2}]", "train.system.tensor_model_parallel_size=2"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` of a fresh environment that has the wheel, and this one's other packages."""
    folder = tmp_path_factory.mktemp("wheel")
    copy_project(folder / "source")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, folder / "source"]
    subprocess.run(build, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    bin_ = folder / "venv" / "bin"
    (wheel,) = folder.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", bin_ / "python", "install", "--quiet", "--no-deps", wheel]
    subprocess.run(pip, check=True)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([bin_ / "python", "-c", ask], check=True, capture_output=True, text=True).stdout
    (Path(packages.strip()) / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return bin_


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder of a user with an experiment, and folders named like our packages."""
    shutil.copytree(ROOT / "examples" / "gpt" / "conf", tmp_path / "conf")
    for name in ("hardware", "backends"):
        (tmp_path / name / "mine").mkdir(parents=True)
        for file in ("__init__.py", "mine/__init__.py", "mine/platform.py", "mine/engine.py"):
            (tmp_path / name / file).write_text(TRAP)
    return tmp_path


def start(command: list[str | Path], folder: Path, *overrides: str) -> str:
    """Run ``one.yaml`` there; what it printed."""
    words = [*command, "--config-path", "conf", "--config-name", "one", *TWO_RANKS, *overrides]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_holds_the_chips_and_the_engine_tables(installed: Path) -> None:
    code = (
        "import flagvega, hardware, backends\n"
        "from flagvega.platform import platforms\n"
        "from flagvega.engine import engines\n"
        "print(flagvega.__file__, len(engines.get('megatron').keys()), platforms.names())\n"
        "[platforms.get(name).chips() for name in platforms.names()]\n"
    )
    done = subprocess.run([installed / "python", "-P", "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(installed.parent))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["script", "module"])
def test_the_wheel_dryruns_beside_a_folder_named_hardware(installed: Path, elsewhere: Path, how: str) -> None:
    command = [installed / "flagvega"] if how == "script" else [installed / "python", "-m", "flagvega"]
    before = set(elsewhere.rglob("*"))
    assert "backends.megatron" in start(command, elsewhere, "action=dryrun")
    written = [path for path in set(elsewhere.rglob("*")) - before if path.is_file()]
    assert [path for path in written if not path.is_relative_to(elsewhere / "outputs" / "gpt-one")] == []


@pytest.mark.slow
def test_the_wheel_trains_on_two_ranks(installed: Path, elsewhere: Path) -> None:
    start([installed / "flagvega"], elsewhere, "action=run", "train.model.train_iters=3")
    steps = read_json_lines(elsewhere / "outputs" / "gpt-one" / "metrics.jsonl")
    assert [line["step"] for line in steps] == [1, 2, 3]
