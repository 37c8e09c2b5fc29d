"""Whole searches as a user starts them, with an engine that computes nothing."""

from __future__ import annotations

import json

import pytest

from tests.toy.cli import call
from tests.toy.tuning import PYTHONPATH, read_trials, write_search

STEPS = "{step_s: [0.05, 0.02, 0.08, 0.03]}"


def test_a_search_finds_the_fastest_and_says_why_it_ended(tmp_path):
    conf = write_search(tmp_path, STEPS)

    result = call(conf, "action=auto_tune", "output=json", PYTHONPATH=PYTHONPATH)

    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["best"]["values"] == {"step_s": 0.02}
    assert answer["ended"] == "all candidates have been tried"
    assert "best/experiment.yaml" in answer["files"]["yaml"]
    assert "0.02" in (tmp_path / "out/report/tune.html").read_text()
    assert len(read_trials(tmp_path)) == 4


def test_dead_trials_are_told_by_name_and_the_search_goes_on(tmp_path):
    conf = write_search(tmp_path, "{trouble: [oom, nan, crash, hang, none]}", "max_time_per_task: 4")

    result = call(conf, "action=auto_tune", PYTHONPATH=PYTHONPATH)

    assert result.returncode == 0, result.stderr
    ends = {trial["values"]["trouble"]: trial["status"] for trial in read_trials(tmp_path)}
    assert ends == {"oom": "oom", "nan": "nan", "crash": "crash", "hang": "hang", "none": "ok"}


def test_a_trial_with_invalid_timings_is_repeated_once(tmp_path):
    once, always = (write_search(tmp_path / word[-4:], f"{{trouble: [{word}]}}") for word in ("late once", "late"))

    results = [call(conf, "action=auto_tune", PYTHONPATH=PYTHONPATH) for conf in (once, always)]

    assert [result.returncode for result in results] == [0, 3], results[0].stderr
    [first], [second] = (read_trials(tmp_path / name) for name in ("once", "late"))
    assert (first["status"], first["reason"]) == ("ok", "")
    assert (second["status"], second["reason"]) == ("invalid_timing", "the toy was busy")
    assert second["time_s"] is None
    counts = [(tmp_path / name / "out/auto_tuner/trials/runs").read_text() for name in ("once", "late")]
    assert counts == ["xx", "xx"]


def test_when_all_trials_fail_the_exit_code_is_3_with_the_commonest_reason(tmp_path):
    conf = write_search(tmp_path, "{trouble: [oom], step_s: [0.01, 0.02]}")

    result = call(conf, "action=auto_tune", PYTHONPATH=PYTHONPATH)

    assert result.returncode == 3, result.stderr
    assert "all 2 trials failed, most of them (2) so: oom" in result.stderr


def test_what_was_measured_is_not_measured_again(tmp_path):
    conf = write_search(tmp_path, STEPS)
    first = call(conf, "action=auto_tune", "experiment.auto_tuner.control.max_trials=2", PYTHONPATH=PYTHONPATH)
    half = read_trials(tmp_path)

    second = call(conf, "action=auto_tune", PYTHONPATH=PYTHONPATH)

    assert (first.returncode, second.returncode) == (0, 0), second.stderr
    trials = read_trials(tmp_path)
    assert trials[:2] == half
    assert len(trials) == 4
    assert len({trial["key"] for trial in trials}) == 4


def test_a_trial_that_is_clearly_slower_ends_early(tmp_path):
    conf = write_search(tmp_path, "{step_s: [0.02, 0.2]}")
    long = ["experiment.auto_tuner.control.train_iters=12", "experiment.auto_tuner.control.max_iters=12"]

    call(conf, "action=auto_tune", *long, PYTHONPATH=PYTHONPATH)

    slow = next(trial for trial in read_trials(tmp_path) if trial["values"]["step_s"] == 0.2)
    assert slow["status"] == "worse"
    assert len(slow["steps"]) < 12


def test_the_best_is_started_at_the_end_where_asked_to(tmp_path):
    conf = write_search(tmp_path, STEPS)

    result = call(conf, "action=auto_tune", "experiment.auto_tuner.control.run_best=true",
                  "train.model.train_iters=7", PYTHONPATH=PYTHONPATH)  # fmt: skip

    assert result.returncode == 0, result.stderr
    assert "step 7" in result.stdout
    rows = (tmp_path / "out/metrics.jsonl").read_text().splitlines()
    assert {json.loads(row)["iter_time_s"] for row in rows} == {0.02}


def test_the_best_yaml_runs_by_itself(tmp_path):
    conf = write_search(tmp_path, STEPS)
    call(conf, "action=auto_tune", PYTHONPATH=PYTHONPATH)

    best = str(tmp_path / "out/auto_tuner/best")
    result = call(None, "--config-path", best, "--config-name", "experiment", "train.model.train_iters=3",
                  PYTHONPATH=PYTHONPATH)  # fmt: skip

    assert result.returncode == 0, result.stderr
    assert "step 3" in result.stdout


def test_optuna_searches_and_its_study_can_be_opened(tmp_path):
    optuna = pytest.importorskip("optuna")
    conf = write_search(tmp_path, "{step_s: [0.05, 0.02, 0.08], words: [[--note, a], [--note, b]]}", algo="optuna")
    two = "experiment.auto_tuner.control.max_trials=2"

    results = [call(conf, "action=auto_tune", *more, PYTHONPATH=PYTHONPATH) for more in ([two], [])]

    assert [result.returncode for result in results] == [0, 0], results[-1].stderr
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "out/auto_tuner/optuna.log"))
    study = optuna.load_study(study_name="toy", storage=optuna.storages.JournalStorage(backend))
    assert study.best_trial.params["step_s"] == 0.02
    done = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    assert len(done) == len(read_trials(tmp_path)) == 6


def test_a_grid_is_tried_in_the_order_it_is_written(tmp_path):
    conf = write_search(tmp_path, STEPS, algo="grid")

    call(conf, "action=auto_tune", PYTHONPATH=PYTHONPATH)

    assert [trial["values"]["step_s"] for trial in read_trials(tmp_path)] == [0.05, 0.02, 0.08, 0.03]


def test_a_choice_that_only_fails_is_put_off(tmp_path):
    space = "{trouble: [crash, none], step_s: [0.05, 0.02, 0.08, 0.03]}"
    conf = write_search(tmp_path, space, "min_trials: 6, max_trials: 6")

    call(conf, "action=auto_tune", PYTHONPATH=PYTHONPATH)

    ends = [trial["status"] for trial in read_trials(tmp_path)]
    assert ends.count("crash") <= 2
    assert ends.count("ok") + ends.count("worse") == 4
