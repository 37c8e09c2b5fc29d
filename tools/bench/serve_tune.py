"""How few trials the serve tuner needs: replays it on grids of a real vLLM, each point of which was measured once.

``python tools/bench/serve_tune.py`` replays and fails when the tuner needs more than a third of a grid's points to find
one within 2 % of the best. ``--collect NAME`` measures what is missing of a grid: vLLM on emulated chips, each point a
run of its own through the keeper, under the load that the case says; what a busy host made late does not count.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any, Final

import yaml
from filelock import FileLock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rich.console import Console

from flagvega.actions.call import OPTIONS, Call
from flagvega.actions.serve_trials import Load, run_trial, trial_spec
from flagvega.actions.tune_serving import Question, ask
from flagvega.config.command import parse
from flagvega.records import write_json
from flagvega.serve.load import Bench
from flagvega.serve.tuning.model import Configuration, GuidedByTraffic, Knowledge
from flagvega.serve.tuning.score import UNIT, least_s
from flagvega.tune.candidates import Choice, Seen, read_settings
from flagvega.tune.pool import Pool
from flagvega.tune.search import NoHistory, Order, listed, shuffled
from flagvega.tune.study import Outcome, Study, Trial
from flagvega.tune.tuner import Budget, Progress, Run, Tuner
from tools.bench.tiny_model import ENGINE_ARGS, make_tiny_model

GRIDS: Final = Path(__file__).with_name("serve_tune_grids")
NEAR: Final = 1.02
"""A point within 2 % of the best has found it: the same configuration measured twice differs by as much."""
SHARE: Final = 1 / 3
SEEDS: Final = 200
SAMPLER_SEEDS: Final = 20
MAX_MODEL_LEN: Final = 2048


@dataclass(frozen=True)
class Case:
    """A chip, what may be chosen, and what is asked of it."""

    name: str
    chip: str
    port: int
    space: Mapping[str, list[Any]]
    traffic: Mapping[str, Any]


CASES: Final = (
    Case(
        "large-long-prompts", "emu-l", 8420,
        {"max_num_seqs": [8, 16, 24, 48], "max_num_batched_tokens": [128, 512, 2048]},
        {"rate_per_s": 6, "input_tokens": {"from": 200, "to": 1600}, "output_tokens": {"from": 32, "to": 96},
         "num_requests": 90, "seed": 3, "targets": {"first_token_s": 2, "per_token_s": 0.1}},
    ),
    Case(
        "small-short-prompts", "emu-s", 8421,
        {"max_num_seqs": [4, 8, 12, 16, 24, 48], "max_num_batched_tokens": [128, 512]},
        {"rate_per_s": 3, "input_tokens": {"from": 32, "to": 256}, "output_tokens": {"from": 16, "to": 48},
         "num_requests": 60, "seed": 3, "targets": {"first_token_s": 1.5, "per_token_s": 0.14}},
    ),
)  # fmt: skip


def call_of(case: Case, folder: Path) -> Call:
    """The command line of a case whose files are in ``folder``."""
    model = folder / "model"
    if not model.exists():
        model.mkdir()
        make_tiny_model(model)
    arguments = {"model": str(model), "port": case.port, "max_model_len": MAX_MODEL_LEN, **ENGINE_ARGS}
    experiment = {
        "exp_name": case.name, "exp_dir": str(folder / "run"), "task": {"type": "serve"},
        "auto_tuner": {"space": case.space},
    }  # fmt: skip
    config = {
        "experiment": experiment, "serve": [{"serve_id": "tiny", "chip": case.chip, "engine_args": arguments}],
        "traffic": case.traffic, "cluster": {"nodes": [{"chip": case.chip, "devices": 1}]},
    }  # fmt: skip
    (folder / "bench.yaml").write_text(yaml.safe_dump(config))
    words = ["--config-path", str(folder), "--config-name", "bench"]
    return Call(parse(words, {}, OPTIONS), Console(quiet=True))


# ---- measuring ----


def collect(case: Case, seconds: float, part: int, num_parts: int) -> None:
    """Measure points that have none, until the time is up: every so many, from ``part`` on."""
    deadline = time.monotonic() + seconds
    case = replace(case, port=case.port + 10 * part)
    with tempfile.TemporaryDirectory(prefix="serve-tune-") as name:
        folder = Path(name)
        call = call_of(case, folder)
        question = ask(call)
        print(f"{case.name}: {len(read_grid(case))} of {len(question.candidates)} points", flush=True)
        with Bench(call.server.bench(), folder / "bench.log") as bench:
            bench.wait()
            for each in question.candidates[part::num_parts]:
                if each.point(0).key in read_grid(case) or time.monotonic() > deadline:
                    continue
                load = Load(bench, question.traffic, question.targets, 600.0)
                outcome = run_trial(call, trial_spec(each.part, folder / "trial"), load)
                print(dict(each.settings), outcome.status, outcome.reason, outcome.time_s, outcome.facts, flush=True)
                if outcome.status == "ok":
                    _keep(case, {"point": each.point(0).record, "outcome": asdict(outcome)})


def _keep(case: Case, row: Mapping[str, Any]) -> None:
    """Add a point; another part of the grid may be measured at the same time."""
    GRIDS.mkdir(exist_ok=True)
    with FileLock(Path(tempfile.gettempdir()) / f"serve-tune-{case.name}.lock"):
        write_json(GRIDS / f"{case.name}.json", {"case": case.name, "points": [*read_grid(case).values(), row]})


def read_grid(case: Case) -> dict[str, dict[str, Any]]:
    """The points of a grid by their keys."""
    path = GRIDS / f"{case.name}.json"
    rows = json.loads(path.read_text())["points"] if path.exists() else []
    return {Choice(read_settings(row["point"])).key: row for row in rows}


# ---- replaying ----


@dataclass
class Grid:
    """A grid that was measured, and the search's question to it."""

    case: Case
    question: Question
    outcomes: Mapping[str, Outcome]

    @property
    def times(self) -> list[float]:
        """Of all points that measured one."""
        return [outcome.time_s for outcome in self.outcomes.values() if outcome.time_s is not None]

    def pool(self) -> Pool:
        """Its points, about which nothing is known."""
        knowledge = Knowledge(self.question.traffic, self.question.targets)
        points = [Configuration(each.settings, each.seats, knowledge) for each in self.question.candidates]
        return Pool([each for each in points if each.point(0).key in self.outcomes])

    def needed(self, order: Order) -> int:
        """Trials until one is within 2 % of the best."""
        for number in range(1, len(self.outcomes) + 1):
            seen = order.next()
            assert seen is not None
            outcome = self.outcomes[seen.point.key]
            if outcome.time_s is not None and outcome.time_s <= NEAR * min(self.times):
                return number
            order.learn(seen, Trial(**vars(outcome), key=str(number), point=seen.point.record, number=number))
        raise AssertionError("the best is a point of the grid")

    def search(self, make: Callable[[Pool], Order]) -> tuple[int, float]:
        """(trials until the search ends by itself, its best over the grid's)."""
        pool = self.pool()
        with tempfile.TemporaryDirectory() as root:
            progress = Progress(Study.open(Path(root)), pool, make(pool), Budget(patience=8, min_trials=5))
            tuner = Tuner(progress, "bench", self._run, UNIT)
            best = tuner.search()
            return len(tuner.trials), (best.time_s or 0.0) / min(self.times)

    def _run(self, seen: Seen) -> Run:
        return lambda _folder, _best_s: self.outcomes[seen.point.key]


def open_grid(case: Case, folder: Path) -> Grid:
    """The kept grid of a case."""
    question = ask(call_of(case, folder))
    rows = {key: row["outcome"] for key, row in read_grid(case).items()}
    outcomes = {key: Outcome(**{**row, **{name: tuple(row[name]) for name in ("steps", "busy", "notes")}})
                for key, row in rows.items()}  # fmt: skip
    return Grid(case, question, outcomes)


def replay(grid: Grid) -> bool:
    """Print how many trials each order needs; whether the tuner's are few enough."""
    size, allowed = len(grid.outcomes), int(len(grid.outcomes) * SHARE)
    least = least_s(grid.question.traffic)

    def guided(pool: Pool) -> Order:
        return GuidedByTraffic(pool, NoHistory(), least_s=least)

    needed = grid.needed(guided(grid.pool()))
    ended, ratio = grid.search(guided)
    chance = [grid.needed(shuffled(grid.pool(), seed)) for seed in range(SEEDS)]
    in_order = grid.needed(listed(grid.pool()))
    near = sum(time_s <= NEAR * min(grid.times) for time_s in grid.times)
    print(f"{grid.case.name}: {size} points on {grid.case.chip}, {near} within 2 % of the best")
    print(f"  tuner    {needed:>5} trials (ends after {ended}, its best {ratio - 1:+.1%})")
    print(f"  random   {mean(chance):>5.1f} trials in the mean of {SEEDS} seeds, median {median(chance):g}")
    if (sampled := _sampled(grid)) is not None:
        middle = median(sampled)
        print(f"  Optuna   {mean(sampled):>5.1f} trials in the mean of {SAMPLER_SEEDS} seeds, median {middle:g}")
    print(f"  in order {in_order:>5} trials")
    return needed <= allowed and ratio <= NEAR


def _sampled(grid: Grid) -> list[int] | None:
    """With Optuna's TPE; None where it is not installed."""
    from flagvega.errors import ConfigError

    try:
        from flagvega.tune.sampler import Sampled
    except ConfigError:
        return None
    return [grid.needed(Sampled.in_memory(grid.pool(), seed)) for seed in range(SAMPLER_SEEDS)]


def main() -> int:
    """Collect, or replay; 1 when the tuner needs too many trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", choices=[case.name for case in CASES], help="measure what is missing of a grid")
    parser.add_argument("--part", default="0/1", help="which part of how many to measure: 0/2 and 1/2 run side by side")
    parser.add_argument("--seconds", type=float, default=3600.0, help="begin no point after so many")
    arguments = parser.parse_args()
    if arguments.collect:
        case = next(case for case in CASES if case.name == arguments.collect)
        part, num_parts = map(int, arguments.part.split("/"))
        collect(case, arguments.seconds, part, num_parts)
        return 0
    good = True
    for case in CASES:
        with tempfile.TemporaryDirectory(prefix="serve-tune-") as folder:
            good &= replay(open_grid(case, Path(folder)))
    print("every best was found in a third of its grid's trials" if good else "FAILED: more than a third of the trials")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
