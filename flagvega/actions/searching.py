"""A search from its folder to its report, whatever its candidates are: what all of ``action=auto_tune`` shares."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from flagvega.actions.call import Call
from flagvega.config.blocks import AutoTuner
from flagvega.config.spec import Spec
from flagvega.errors import ExitCode
from flagvega.records import write_text, writing
from flagvega.run.directory import RunDirectory
from flagvega.run.processes import kill_processes
from flagvega.tune.folder import FOLDER, Search, SearchFolder, State
from flagvega.tune.pool import Pool
from flagvega.tune.search import Order, shuffled
from flagvega.tune.study import Study, Trial
from flagvega.tune.tuner import Budget, Tuner
from flagvega.tune.view import View

REPORT = "report/tune.html"


def settings_of(spec: Spec) -> Mapping[str, Any]:
    """The ``auto_tuner`` block, or what it is when it is left out."""
    return spec.blocks.get("auto_tuner") or asdict(AutoTuner())


def search(call: Call, make: Callable[[Study], Tuner], opening: Callable[[Tuner], Sequence[str]],
           page: Callable[[Tuner], str]) -> tuple[Tuner, Trial]:  # fmt: skip
    """Search in ``<exp_dir>/auto_tuner``; what was measured there before counts and is not repeated.

    However it ends, ``report/tune.html`` is written. NoPlanError when nothing ran.
    """
    folder = SearchFolder(call.spec.exp_dir / FOLDER)
    make_folder(folder.root)
    signal.signal(signal.SIGTERM, _terminate)
    # Whoever starts the tuner in the background may have told it to ignore this.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with folder.lock:
        study = Study.open(folder.root)
        _clear_interrupted(study)
        tuner = make(study)
        for line in opening(tuner):
            call.say(line)
        return tuner, _search(call, folder, tuner, page)


def make_folder(root: Path) -> None:
    """Of the search; PreflightError where it cannot be written."""
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)


def _search(call: Call, folder: SearchFolder, tuner: Tuner, page: Callable[[Tuner], str]) -> Trial:
    """Search, and leave a record of how it ended and a report, however it ends."""
    num_candidates, report = tuner.progress.pool.num_legal, call.spec.exp_dir / REPORT
    report.parent.mkdir(parents=True, exist_ok=True)
    search = Search(call.spec.name, tuner.base_key, tuner.unit, num_candidates, started=time.time())
    folder.write(search)
    state: State = "failed"
    with View(call.console, tuner) as view:
        tuner.watch = view.update
        try:
            best = tuner.search()
            state = "done"
            return best
        except (KeyboardInterrupt, SystemExit):
            state = "stopped"
            raise
        finally:
            folder.write(search, state=state, reason=tuner.progress.ended, ended=time.time())
            write_text(report, page(tuner))


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(int(ExitCode.TERMINATED))


def _clear_interrupted(study: Study) -> None:
    """Trials that a dead tuner left behind: end their processes, and forget them."""
    done = {trial.number for trial in study.trials}
    for folder in sorted((study.root / "trials").glob("[0-9]*")):
        if int(folder.name) not in done:
            run = RunDirectory(folder).read()
            if run is not None:
                kill_processes(run.token)
            shutil.rmtree(folder, ignore_errors=True)


def make_order(settings: Mapping[str, Any], pool: Pool, study: Study, name: str, guided: Callable[[Pool], Order],
               grid: Callable[[Pool, str | None], Order]) -> Order:  # fmt: skip
    """What ``algo`` asks for."""
    algo = settings["algo"]
    if algo["name"] == "guided":
        return guided(pool)
    if algo["name"] == "grid":
        return grid(pool, algo["priority"])
    if algo["name"] == "random":
        return shuffled(pool, algo["seed"])
    from flagvega.tune.sampler import Sampled

    return Sampled.open(pool, study.root, name, algo["seed"])


def budget_of(settings: Mapping[str, Any]) -> Budget:
    """What ``control`` allows."""
    control = settings["control"]
    patience = None if settings["algo"]["name"] == "grid" else control["patience"]
    return Budget(control["max_trials"], control["max_time"], patience, control["min_trials"])


def document(tuner: Tuner, best: Trial, paths: Mapping[str, Path]) -> dict[str, Any]:
    """What came out, for programs."""
    return {
        "ended": tuner.progress.ended,
        "num_candidates": tuner.progress.pool.num_legal,
        "num_trials": len(tuner.trials),
        "best": {"trial": best.number, "time_s": best.time_s, "tokens_per_s": best.tokens_per_s,
                 "values": dict(best.values), **best.facts},
        "files": {name: str(path) for name, path in paths.items()},
    }  # fmt: skip
