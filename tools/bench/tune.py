"""How many trials the tuner needs, against orders that know less.

Without an argument: it searches three kept grids, every point of which was measured once, and a fourth cluster live;
prints the table of the docs; and ends with 1 where it needs more than ten trials. ``replay``: the kept grids only (half
a minute). ``live``: the fourth only. ``rank``: counts and ranks a space of millions. ``collect``: measures the kept
grids, as far as ``--minutes`` go; called again, it goes on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from flagvega.engine import engines
from flagvega.tune.folder import FOLDER
from flagvega.tune.pool import Pool
from flagvega.tune.sampler import Sampled
from flagvega.tune.search import Order, shuffled
from flagvega.tune.study import Study, Trial
from flagvega.tune.training.families import pool_of
from flagvega.tune.training.history import guided
from flagvega.tune.training.priority import grid
from flagvega.tune.training.question import ask
from flagvega.tune.training.shape import read_point
from tools.bench.tune_cases import KEPT, LARGE, LIVE, Case, Measured, read_grid

ROOT = Path(__file__).resolve().parents[2]
NEAR = 1.02
FEW = 10
"""Trials that the tuner may need."""
MAX_TRIALS = 150
HEAD = ("cluster", "points", "within 2 %", "rank of first guess", "guided", "random", "Optuna TPE", "FlagScale's order")


def rank_large() -> None:
    """Count and rank the large space."""
    began = time.process_time()
    question = ask(LARGE.spec(), engines.get("megatron"))
    pool = pool_of(question)
    seen = guided(pool).next()
    took = time.process_time() - began
    legal = question.tally.steps[-1][1]
    print(f"{question.tally.total:,} layouts before any rule, {legal:,} legal; {pool.num_legal:,} with their layers,")
    print(f"{pool.num_fitting:,} of them fit; counted and ranked in {took:.1f} s of CPU")
    print(f"first: {dict(seen.point.values) if seen else None}")


def search(grid_of: Measured, order: Order) -> tuple[int, int]:
    """(trials until one is within 2 % of the grid's best, rank of the first trial among all points)."""
    times, first = grid_of.times, 0
    for number in range(1, MAX_TRIALS + 1):
        seen = order.next()
        if seen is None:
            break
        row = grid_of.points.get(seen.point.key)
        if row is None or row["status"] == "refused":
            continue
        trial = Trial(
            row["status"], number=number, key=seen.point.key, point=seen.point.record, time_s=row.get("time_s"),
            busy=tuple(row.get("busy", ())),
        )  # fmt: skip
        order.learn(seen, trial)
        if not trial.is_good:
            continue
        first = first or 1 + sum(time_s < row["time_s"] for time_s in times)
        if row["time_s"] <= NEAR * grid_of.best_s:
            return number, first
    return MAX_TRIALS, first


def needed(measured: Measured, make: Callable[[Pool], Order]) -> int:
    """Trials of an order."""
    return search(measured, make(measured.pool()))[0]


def show(measured: Measured, num_seeds: int, given: tuple[int, int] | None = None) -> bool:
    """Print a row of the table; whether the tuner needed few trials. ``given``: what it needed when it ran live."""
    num, rank = given or search(measured, guided(measured.pool()))
    at_random = [needed(measured, partial(shuffled, seed=seed)) for seed in range(num_seeds)]
    tpe = [needed(measured, partial(Sampled.in_memory, seed=seed)) for seed in range(max(3, num_seeds // 10))]
    by_rule = [needed(measured, partial(grid, priority=its)) for its in ("performance", "memory")]
    near = sum(time_s <= NEAR * measured.best_s for time_s in measured.times)
    title = measured.case.title + (" (live)" if given else "")
    cells = (title, len(measured.points), near, rank, f"**{num}**", f"{median(at_random):g}", f"{median(tpe):g}",
             " / ".join(map(str, by_rule)))  # fmt: skip
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    return num <= FEW


# ---- live ----


def search_live(case: Case, folder: Path) -> tuple[Measured, tuple[int, int]]:
    """Search with at most ten trials, as a user would, then try all the rest; what the search needed of all that."""
    control = "experiment.auto_tuner.control"
    common = [f"experiment.exp_dir={folder}", f"{control}.train_iters=3", f"{control}.max_iters=5",
              f"{control}.max_time=null", f"{control}.patience=null", f"{control}.run_best=false"]  # fmt: skip
    _tune([*case.command, *common, f"{control}.max_trials={FEW}", f"{control}.min_trials={FEW}"])
    first = Study.open(folder / FOLDER).trials[:FEW]
    _tune([*case.command, *common, f"{control}.max_trials=null", "experiment.auto_tuner.algo.name=grid"])
    trials = Study.open(folder / FOLDER).trials
    for trial in trials:
        if not trial.is_good:
            print(f"trial {trial.number}: {trial.status}: {trial.reason}", file=sys.stderr)
    points = {read_point(trial.point).key: asdict(trial) for trial in trials}
    measured = Measured(case, ask(case.spec(), engines.get("megatron")), points)
    times = [trial.time_s if trial.is_good and trial.time_s else float("inf") for trial in first]
    num = next((i for i, time_s in enumerate(times, 1) if time_s <= NEAR * measured.best_s), MAX_TRIALS)
    return measured, (num, 1 + sum(time_s < times[0] for time_s in measured.times))


def _tune(words: list[str]) -> None:
    subprocess.run(
        [sys.executable, "run.py", *words, "action=auto_tune", "output=json"], cwd=ROOT, check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip


def main() -> int:
    """Act on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", default="all", choices=("all", "replay", "live", "rank", "collect"))
    parser.add_argument("--case", choices=[case.name for case in KEPT], help="only this kept grid")
    parser.add_argument("--minutes", type=float, default=3.5)
    parser.add_argument("--folder", type=Path, help="where the live search is kept: it goes on where it was ended")
    parser.add_argument("--seeds", type=int, default=60)
    given = parser.parse_args()
    if given.what == "rank":
        rank_large()
        return 0
    cases = [case for case in KEPT if given.case in (None, case.name)]
    if given.what == "collect":
        from tools.bench.tune_collect import collect

        for case in cases:
            collect(case, given.minutes)
        return 0
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|", flush=True)
    good = [show(read_grid(case), given.seeds) for case in cases] if given.what != "live" else []
    if given.what != "replay":
        with tempfile.TemporaryDirectory() as folder:
            measured, found = search_live(LIVE, given.folder or Path(folder))
            good.append(show(measured, given.seeds, found))
    print(f"{sum(good)} of {len(good)} clusters: within 2 % of the best in at most {FEW} trials")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
