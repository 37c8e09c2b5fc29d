"""How well the analytic costs predict published runs: rows judged by constants that were not fitted to them.

    python tools/bench/cost_model.py            folds, errors and bounds; exit code 1 where a bound is missed
    python tools/bench/cost_model.py --fit      fits the constants anew and prints the table to commit
    python tools/bench/cost_model.py --docs     also writes the tables into docs/planner.md, between its markers

No random numbers, so no seeds. A minute on one core.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median

import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from flagvega.plan.calibration import Calibration, calibration  # noqa: E402
from tools.bench import fitting  # noqa: E402
from tools.bench.fitting import SHARED, START, errors, fit_shared, grouped, left_out  # noqa: E402
from tools.bench.measured_runs import Constants, Run, read_runs  # noqa: E402

DOCS = ROOT / "docs" / "planner.md"
BEGIN, END = "<!-- cost_model.py writes from here -->\n", "<!-- to here -->\n"
SOURCE_HEAD = ["Source", "Chip, element type", "Figure", "Rows", "Median error", "Mean error", "Mean bias"]
RANK = 0.9
FEWEST = 3
"""Rows that a rank correlation needs."""
HEADER = """\
# Written by `python tools/bench/cost_model.py --fit`, from rows of tests/data/measured_training.csv: SimuMax (B200;
# what all chips share too) and llm-foundry on one host (A100, H100). Meaning of each: flagvega/plan/calibration.py.
"""


@dataclass(frozen=True)
class Verdict:
    """One thing that is bounded: an error at most, or a rank correlation at least."""

    name: str
    folds: str
    rows: int
    fitted_rows: int
    """The least that constants were fitted to in a fold."""
    constants: int
    value: float
    bound: float
    is_rank: bool = False
    is_judged: bool = True

    @property
    def holds(self) -> bool:
        """Whether the bound is kept."""
        return self.value >= self.bound if self.is_rank else self.value <= self.bound

    def cells(self) -> list[str]:
        """As a row of a table."""
        sign, form = (">=", ".2f") if self.is_rank else ("<=", ".1%")
        if not self.is_judged:
            bound, verdict = "none", "reported"
        else:
            bound, verdict = f"{sign} {self.bound:{form}}", "holds" if self.holds else "**missed**"
        fitted = f"{self.constants} to {self.fitted_rows} rows" if self.constants else "none"
        return [self.name, self.folds, str(self.rows), fitted, f"{self.value:{form}}", bound, verdict]


def is_fitted(run: Run) -> bool:
    """Whether the committed table is fitted to a row: of fully sharded ones those of one host."""
    if run.metric != "time" or run.is_suspect:
        return False
    return run.source == "SimuMax" or (run.source == "llm-foundry" and run.num_devices <= run.devices_per_host)


def fit(runs: Sequence[Run]) -> Constants:
    """The table: what is shared and B200's own from one engine's rows, then what is each other chip's own."""
    its = [run for run in runs if is_fitted(run)]
    constants = fit_shared([run for run in its if run.source == "SimuMax"], START)
    for chip in grouped([run for run in its if run.source != "SimuMax"], lambda run: run.chip).values():
        constants = fitting.fit_chip(chip, constants)
    return constants


def judge(runs: Sequence[Run], constants: Constants) -> list[Verdict]:
    """Everything that is bounded, and what is reported beside it."""
    return [
        *_judge_b200(runs, constants),
        *_judge_gh200(runs, constants),
        *_judge_ranks(runs, constants),
        *_judge_bridge(runs, constants),
    ]


def _judge_b200(runs: Sequence[Run], constants: Constants) -> list[Verdict]:
    its = [run for run in runs if run.source == "SimuMax"]
    times = [run for run in its if run.metric == "time"]
    off = left_out(times, _family, lambda rest: fit_shared(rest, START))
    memory = [run for run in its if run.metric == "memory"]
    fewest = len(times) - max(Counter(map(_family, times)).values())
    return [
        Verdict("B200, step time", "one model left out", len(times), fewest, len(SHARED) + 2, mean(off), 0.08),
        Verdict("B200, step time", "fitted", len(times), len(times), len(SHARED) + 2,
                mean(errors(times, constants)), 0.05),
        Verdict("B200, memory", "nothing fitted", len(memory), 0, 0, mean(errors(memory, constants)), 0.01),
    ]  # fmt: skip


def _judge_gh200(runs: Sequence[Run], constants: Constants) -> list[Verdict]:
    its = [run for run in runs if run.source == "Sailor" and not run.is_suspect]
    times, memory = ([run for run in its if run.metric == metric] for metric in ("time", "memory"))
    off = left_out(times, id, lambda rest: fitting.fit_foreign(rest, constants))
    used = left_out(memory, id, lambda rest: fitting.fit_runtime(rest, constants))
    return [
        Verdict("GH200, step time", "one row left out", len(times), len(times) - 1, 2, mean(off), 0.10),
        Verdict("GH200, memory", "one row left out", len(memory), len(memory) - 1, 1, mean(used), 0.06),
    ]


def _judge_ranks(runs: Sequence[Run], constants: Constants) -> list[Verdict]:
    """Other sources, by chip: error reported, rank correlation judged; fully sharded as they are."""
    found = []
    for source, is_judged in (("llm-foundry", True), ("torchtitan", True), ("InternEvo", False)):
        held_out = [run for run in runs if run.source == source and run.metric == "time" and not is_fitted(run)]
        for chip, its in grouped(held_out, lambda run: run.chip).items():
            num = sum(is_fitted(run) and run.chip == chip for run in runs)
            name, fold = f"{chip}, {source}", "several hosts" if source == "llm-foundry" else "another source"
            if len(its) >= FEWEST:
                rank = rank_correlation(its, constants)
                found.append(Verdict(f"{name}, rank", fold, len(its), num, 2, rank, RANK, True, is_judged))
            off = mean(errors(its, constants))
            found.append(Verdict(f"{name}, step time", fold, len(its), num, 2, off, 0, False, False))
    return found


def _judge_bridge(runs: Sequence[Run], constants: Constants) -> list[Verdict]:
    """Megatron-Bridge: the newest release of each run, scaled for each chip and element type as older releases say."""
    all_runs = [run for run in runs if run.source == "Megatron-Bridge" and not run.is_fully_sharded]
    its = newest(all_runs)
    predicted = {run: run.predict(constants) for run in all_runs}
    older = grouped([run for run in all_runs if run not in its], lambda run: (run.chip, run.dtype))
    scale = {key: median(run.value / predicted[run] for run in rows) for key, rows in older.items()}
    num_fitted = sum(map(len, older.values()))
    found = []
    for family, rows in grouped(its, _family).items():
        scaled = [predicted[run] * scale.get((run.chip, run.dtype), 1.0) for run in rows]
        name, fold, counts = (
            f"Megatron-Bridge, {family}",
            "newest release; older scale each chip and type",
            (num_fitted, len(scale)),
        )
        if len(rows) >= FEWEST:
            rank = correlate([-run.value / run.tokens for run in rows],
                             [-time_s / run.tokens for time_s, run in zip(scaled, rows, strict=True)])  # fmt: skip
            found.append(Verdict(f"{name}, rank", fold, len(rows), *counts, rank, RANK, True))
        off = mean(abs(time_s / run.value - 1) for time_s, run in zip(scaled, rows, strict=True))
        found.append(Verdict(f"{name}, step time", fold, len(rows), *counts, off, 0, False, False))
    return found


def newest(runs: Sequence[Run]) -> list[Run]:
    """Of each model, chip and element type the runs of the newest release that has it."""
    found = []
    for its in grouped(runs, lambda run: (run.model, run.chip, run.dtype)).values():
        last = max(run.release for run in its)
        found += [run for run in its if run.release == last]
    return found


def _family(run: Run) -> str:
    return run.family


def rank_correlation(runs: Sequence[Run], constants: Constants) -> float:
    """Spearman's, of tokens per second and device."""
    return correlate([run.tokens / run.value for run in runs], [run.tokens / run.predict(constants) for run in runs])


def correlate(told: Sequence[float], predicted: Sequence[float]) -> float:
    """Spearman's rank correlation."""
    one, other, middle = _ranks(told), _ranks(predicted), (len(told) - 1) / 2
    spread = sum((rank - middle) ** 2 for rank in one) * sum((rank - middle) ** 2 for rank in other)
    return sum((a - middle) * (b - middle) for a, b in zip(one, other, strict=True)) / math.sqrt(spread or 1.0)


def _ranks(values: Sequence[float]) -> list[float]:
    return [sum(other < value for other in values) + (values.count(value) - 1) / 2 for value in values]


def by_source(runs: Sequence[Run], constants: Constants) -> list[list[str]]:
    """Error of the committed constants by source, chip and figure; of an engine of its own only the judged rows."""
    key: Callable[[Run], Hashable] = lambda run: (run.source, run.chip, run.dtype, run.metric, _role(run))  # noqa: E731
    found = []
    for its in grouped([run for run in runs if not run.engine.is_foreign], key).values():
        off, one = errors(its, constants), its[0]
        bias = mean(run.predict(constants) / run.value - 1 for run in its)
        figure = f"{one.metric} ({_role(one)})"
        found.append([one.source, f"{one.chip} {one.dtype}", figure, str(len(its)), f"{median(off):.1%}",
                      f"{mean(off):.1%}", f"{bias:+.1%}"])  # fmt: skip
    return found


def _role(run: Run) -> str:
    parts = ["nothing fitted" if run.metric == "memory" else "fitted" if is_fitted(run) else "held out"]
    parts += ["suspect or from memory"] * run.is_suspect + ["fully sharded"] * run.is_fully_sharded
    return ", ".join(parts)


def as_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main() -> int:
    """Judge the committed table, or fit it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true", help="fit the constants and print them")
    parser.add_argument("--docs", action="store_true", help="write the tables into docs/planner.md")
    options = parser.parse_args()
    runs, left = read_runs()
    if options.fit:
        print(as_yaml(with_errors(runs, fit(runs))), end="")
        return 0
    constants = Constants(calibration())
    verdicts = judge(runs, constants)
    head = ["What", "Fold", "Rows", "Constants fitted", "Mean error, or rank correlation", "Bound", ""]
    told = as_table(head, [verdict.cells() for verdict in verdicts]) + "\n"
    told += as_table(SOURCE_HEAD, by_source(runs, constants)) + "\n"  # fmt: skip
    told += as_table(["Left out", "Rows", "Why"], [[source, str(n), why] for (source, why), n in left.items()])
    num, num_fitted = count(constants.table), sum(map(is_fitted, runs))
    print(f"{num} constants committed, fitted to {num_fitted} rows; no seeds\n\n{told}")
    if options.docs:
        before, rest = DOCS.read_text(encoding="utf-8").split(BEGIN)
        DOCS.write_text(before + BEGIN + told + END + rest.split(END)[1], encoding="utf-8")
    return 0 if all(verdict.holds for verdict in verdicts if verdict.is_judged) else 1


def count(table: Calibration) -> int:
    """Constants of a table that are fitted."""
    return len(SHARED) + len(table.efficiency) + len(table.attention)


def with_errors(runs: Sequence[Run], constants: Constants) -> Calibration:
    """The table with the median error of a step on rows that were not fitted, by chip."""
    found: dict[tuple[str, str], float] = {}
    b200 = [run for run in runs if run.source == "SimuMax" and run.metric == "time"]
    found["b200-sxm", "bf16"] = median(left_out(b200, _family, lambda rest: fit_shared(rest, START)))
    known = constants.table.efficiency
    others = [run for run in runs if run.metric == "time" and not run.is_suspect and not is_fitted(run)]
    others = [run for run in others if (run.chip, run.dtype) in known and run.source != "Megatron-Bridge"]
    for chip, its in grouped(others, lambda run: (run.chip, run.dtype)).items():
        found[chip] = median(errors(its, constants))
    return replace(constants.table, held_out_error={chip: round(error, 3) for chip, error in found.items()})


def as_yaml(table: Calibration) -> str:
    """The table as it is committed."""
    said: dict[str, object] = {name: round(getattr(table, name), 3) for name in SHARED}
    for name in ("efficiency", "attention", "held_out_error"):
        said[name] = _nest(getattr(table, name))
    return HEADER + yaml.safe_dump(said, sort_keys=False)


def _nest(by_chip: Mapping[tuple[str, str], float]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for (chip, dtype), value in sorted(by_chip.items()):
        found.setdefault(chip, {})[dtype] = round(value, 3)
    return found


if __name__ == "__main__":
    sys.exit(main())
