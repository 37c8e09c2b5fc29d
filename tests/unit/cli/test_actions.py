"""The actions, called as a user calls them."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flagvega.actions.test import judge_steps
from tests.toy.cli import argv, call, environment, write_conf
from tests.toy.job import ROOT
from tests.toy.tuning import PYTHONPATH

WITHOUT_TORCH = """\
import sys
from flagvega.cli import main
code = main(sys.argv[1:])
heavy = sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "megatron", "vllm"})
sys.exit(f"imported {heavy}" if heavy else code)
"""


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    return write_conf(tmp_path)


def test_dryrun_prints_what_runs_and_writes_nothing(conf: Path, tmp_path: Path) -> None:
    done = call(conf, "action=dryrun", "output=json", "construct=false")
    document = json.loads(done.stdout)
    assert document["commands"][0]["argv"][3] == "torch.distributed.run"
    assert "exec " in document["files"]["job/node-0.sh"]
    assert not (tmp_path / "out").exists()
    assert "Nothing was started." in call(conf, "action=dryrun").stdout


def test_run_does_what_dryrun_printed_and_ends_with_the_next_commands(conf: Path, tmp_path: Path) -> None:
    printed = json.loads(call(conf, "action=dryrun", "output=json").stdout)["files"]
    done = call(conf)
    assert done.returncode == 0, done.stderr
    assert "step 5/5" in done.stderr
    assert "step 5, loss 5.0000 -> 1.0000" in done.stdout
    assert f"action=logs run_dir={tmp_path}/out" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert printed == {name: (tmp_path / "out" / name).read_text() for name in printed}
    assert (tmp_path / "out" / "config.yaml").exists()


def test_json_is_one_document_whatever_happens(conf: Path) -> None:
    done = call(conf, "output=json", "train.system.words=[--code,93]", PYTHONPATH=PYTHONPATH)
    assert done.returncode == 93
    assert json.loads(done.stdout)["exit_code"] == 93
    done = call(conf, "action=dryrun", "output=json", "train.model.train_itres=3")
    assert done.returncode == 2
    assert "train_itres" in json.loads(done.stdout)["faults"][0]["where"]


def test_a_detached_run_is_seen_logged_and_stopped_from_another_shell(conf: Path, tmp_path: Path) -> None:
    assert "nothing has run" in call(conf, "action=status").stdout
    assert "nothing has run" in call(conf, "action=stop").stdout
    done = call(conf, "detach=true", "output=json", "train.model.train_iters=100000")
    started = json.loads(done.stdout)
    assert started["state"] == "running", done.stderr
    where = f"run_dir={started['run_dir']}"
    refused = call(conf)
    assert refused.returncode == 4
    assert "in use by process" in refused.stderr
    assert call(None, "action=stop", where).stdout.strip() in ("stopped", "killed")
    (status,) = json.loads(call(None, "action=query", where, "output=json").stdout)["runs"]
    assert (status["state"], status["exit_code"]) == ("stopped", 143)
    assert "already stopped" in call(conf, "action=stop").stdout
    logs = json.loads(call(None, "action=logs", where, "rank=1", "output=json").stdout)["logs"]
    assert logs["1"]["lines"] == ["rank 1 begins"]
    assert "rank 0 begins" in call(None, "action=logs", where, "follow=true").stdout
    assert call(None, "action=logs", where, "rank=7").returncode == 2


def test_test_takes_a_few_steps_beside_the_run_and_fails_when_the_loss_grows(conf: Path, tmp_path: Path) -> None:
    done = call(
        conf, "action=test", "steps=3", "output=json", "train.system.words=[--loss,rising]", PYTHONPATH=PYTHONPATH
    )
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert document["steps"] == 3
    assert "the loss grows: 1.0000 at step 1, 3.0000 at step 3" in document["faults"]
    assert not (tmp_path / "out" / "run.json").exists()


def test_a_test_never_goes_on_from_the_one_before(conf: Path, tmp_path: Path) -> None:
    left = tmp_path / "out" / "test" / "checkpoints" / "iter_0000003"
    left.mkdir(parents=True)
    assert call(conf, "action=test", "steps=3", PYTHONPATH=PYTHONPATH).returncode == 0
    assert not left.parent.exists()


def test_a_test_passes_when_all_is_finite_and_nothing_grows() -> None:
    good = [{"step": step, "loss": 5.0 / step, "grad_norm": 1.0} for step in (1, 2, 3)]
    assert judge_steps(good) == []
    assert judge_steps([]) == ["no step was reported"]
    assert judge_steps([*good, {"step": 4, "loss": math.nan, "grad_norm": math.inf}]) == [
        "step 4: loss is nan",
        "step 4: grad norm is inf",
    ]
    assert judge_steps([*good, {"step": 4, "loss": 1.0, "grad_norm": None}]) == []


def test_a_run_that_dies_shows_the_exception_and_where_the_log_is(conf: Path) -> None:
    done = call(conf, "train.system.words=[--crash,1]")
    assert done.returncode == 1
    assert "RuntimeError: the toy breaks" in done.stderr
    assert "rank-1.log" in done.stdout


def test_a_finished_run_says_so_before_anything_starts(conf: Path, tmp_path: Path) -> None:
    done = call(conf, "train.system.words=[--start,5]", PYTHONPATH=PYTHONPATH)
    assert done.returncode == 0, done.stderr
    assert "was finished already, at step 5: raise train_iters" in done.stdout
    assert not (tmp_path / "out").exists()


def test_a_run_that_goes_on_says_from_where_and_troubles_are_told_once_and_again_at_the_end(
    conf: Path, tmp_path: Path
) -> None:
    done = call(conf, "train.system.words=[--start,3,--note,too busy]", PYTHONPATH=PYTHONPATH)
    assert "found the checkpoint of step 3: going on" in done.stderr
    for text in (done.stderr, done.stdout, call(None, "action=status", f"run_dir={tmp_path}/out").stdout):
        assert text.count("toy trouble: too busy (seen by rank ") == 1
    (status,) = json.loads(call(None, "action=status", f"run_dir={tmp_path}/out", "output=json").stdout)["runs"]
    assert (status["start_step"], len(status["notes"])) == (3, 1)


def test_without_a_configuration_or_a_folder_status_asks_which_run(tmp_path: Path) -> None:
    done = call(None, "action=status")
    assert done.returncode == 2
    assert "give run_dir=FOLDER" in done.stderr


@pytest.mark.skipif(shutil.which("script") is None, reason="no `script` here to make a terminal")
def test_a_plan_loses_no_word_on_a_narrow_terminal(conf: Path) -> None:
    command = shlex.join(argv(conf, "action=dryrun", "construct=false"))
    typescript = ["script", "-qec", f"stty cols 50; {command}", "/dev/null"]
    shown = subprocess.run(typescript, env=environment(), capture_output=True, text=True, check=True).stdout
    assert "in flight" in call(conf, "action=dryrun", "construct=false").stdout
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown


@pytest.mark.parametrize("words", [["action=dryrn"], ["steps"], ["action=logs", "lines=few"], ["output=xml"]])
def test_mistakes_end_with_2_and_no_traceback(conf: Path, words: list[str]) -> None:
    done = call(conf, *words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_init_writes_a_start_and_help_lists_the_actions(tmp_path: Path) -> None:
    done = subprocess.run(
        [*argv(None, "action=init")], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    assert (tmp_path / "conf" / "experiment.yaml").exists()
    assert "action=dryrun" in done.stdout
    assert "action=run unless the YAML names another" in call(None, "--help").stdout


@pytest.mark.parametrize("words", [["dryrun"], ["status"], ["schema"], ["logs"], ["stop"], ["dryrun", "output=json"]])
def test_control_actions_never_import_torch(conf: Path, tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "out").mkdir()
    where = ["--config-path", str(conf), "--config-name", "toy", f"action={words[0]}", *words[1:]]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *where], env=environment(), capture_output=True, text=True, check=False
    )
    assert "imported" not in done.stderr
    assert done.returncode in (0, 2), done.stderr


def test_the_demo_dry_runs_without_torch() -> None:
    where = ["--config-path", "examples/llama/conf", "--config-name", "demo", "action=dryrun", "construct=false"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *where], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "bridge, slow" in done.stdout
