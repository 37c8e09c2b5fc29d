"""How few trials the serve tuner needs: replays it on grids of a real vLLM, each point of which was measured once.

``python tools/bench/serve_tune.py`` replays and fails when the tuner needs more than a third of a grid's points to find
one within 2 % of the best; it also tells how well a trial predicts the others. ``--collect NAME`` measures what is
missing of a grid: vLLM on emulated chips, each point a run of its own through the keeper, under the load that the case
says; what a busy host made late does not count. Kept are the answers, from which steps are learned anew each time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
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
from flagvega.records import append_json_line, read_json, read_json_lines
from flagvega.serve.load import Bench
from flagvega.serve.tuning.answers import ANSWERS_FILE, answers_of_json
from flagvega.serve.tuning.model import Configuration, GuidedByTraffic, Knowledge, steps_of
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
    num_devices: int = 1


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
    Case(
        "small-several", "emu-s", 8440,
        {"tensor_parallel_size": [1, 2], "instance": [1, 2], "max_num_seqs": [4, 8, 16, 32]},
        {"rate_per_s": 6, "input_tokens": {"from": 32, "to": 256}, "output_tokens": {"from": 16, "to": 48},
         "num_requests": 70, "seed": 3, "targets": {"first_token_s": 1.5, "per_token_s": 0.14}},
        num_devices=2,
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
        "traffic": case.traffic, "cluster": {"nodes": [{"chip": case.chip, "devices": case.num_devices}]},
    }  # fmt: skip
    if case.num_devices > 1:
        config["gateway"] = {"port": case.port + case.num_devices}
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
                    _keep(case, each, outcome, read_json(folder / "trial" / ANSWERS_FILE))


def _keep(case: Case, point: Configuration, outcome: Outcome, answers: Sequence[Mapping[str, Any]]) -> None:
    """Add a point, with its answers in place of what was learned from them."""
    instances = [{**each, "steps": None} for each in outcome.details["instances"]]
    kept = asdict(replace(outcome, details={**outcome.details, "instances": instances}))
    GRIDS.mkdir(exist_ok=True)
    with FileLock(Path(tempfile.gettempdir()) / f"serve-tune-{case.name}.lock"):
        row = {"point": point.point(0).record, "outcome": kept, "answers": answers}
        append_json_line(GRIDS / f"{case.name}.jsonl", row)


def read_grid(case: Case) -> dict[str, dict[str, Any]]:
    """The points of a grid by their keys."""
    rows = read_json_lines(GRIDS / f"{case.name}.jsonl")
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
    rows = read_grid(case)
    found = ((each, rows[each.point(0).key]) for each in question.candidates if each.point(0).key in rows)
    return Grid(case, question, {each.point(0).key: _outcome(each, row) for each, row in found})


def _outcome(point: Configuration, row: Mapping[str, Any]) -> Outcome:
    """A kept point as its trial would have ended today: what its answers say of steps is learned anew."""
    kept = row["outcome"]
    details = kept["details"]
    if "answers" in row:  # the second grid is older than that
        told = zip(details["instances"], steps_of(point.seats, answers_of_json(row["answers"])), strict=True)
        details = {**details, "instances": [{**each, "steps": asdict(sums)} for each, sums in told]}
    tuples = {name: tuple(kept[name]) for name in ("steps", "busy", "notes")}
    return Outcome(**{**kept, **tuples, "details": details})


def errors(grid: Grid) -> list[float]:
    """By how much what one trial predicts of another is off, as a share: of all pairs with instances of one form."""
    found = []
    keyed = ((each, grid.outcomes.get(each.point(0).key)) for each in grid.question.candidates)
    points = [(each, outcome) for each, outcome in keyed if outcome]
    for tried, outcome in points:
        knowledge = Knowledge(grid.question.traffic, grid.question.targets)
        knowledge.learn(tried, Trial(**vars(outcome), key="", point=tried.point(0).record, number=1))
        for other, measured in points:
            if other is not tried and {each.form for each in other.seats} == {each.form for each in tried.seats}:
                assert measured.time_s is not None
                expected_s, _ = knowledge.time_s(other.seats)
                found.append(max(expected_s / measured.time_s, measured.time_s / expected_s) - 1)
    return found


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
    off = sorted(errors(grid))
    print(
        f"  what one trial predicts of another is off by {mean(off):.1%} in the mean, {median(off):.1%} in the median,"
    )
    print(f"  {off[-1]:.0%} at most ({len(off)} pairs with instances of one form)")
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
