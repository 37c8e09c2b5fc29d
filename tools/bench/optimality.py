"""Whether the planner's plan is the best there is: against an enumerator, and against a solver of integer programs.

    python tools/bench/optimality.py [--instances 500] [--programs 20] [--results FILE] [--processes 2]

First random instances of at most a million plans, 2 to 4 kinds of chips, such as 6 stages x 12 layers or 4 x 24, memory
binding in about half: the simulated time of the planner's plan against the least of all plans, each of them
timed by an enumerator that shares only the costs of stages with the planner (tests/unit/plan/brute.py). Then instances
of 16 hosts x 24 layers against HiGHS, which proves its answer: see tools/bench/integer_program.py for what is compared.
That needs scipy (requirements/bench.txt); `--programs 0` leaves it out.

With ``--results`` every instance is a line of JSON there, and those that are there already are not run again. Exit code
1 when a ratio is not 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from flagvega.errors import NoPlanError
from flagvega.plan.search import search
from flagvega.records import append_json_line, read_json_lines
from tests.unit.plan import brute, instances

MOST_PLANS = 10**6
TIME_S = 30.0
"""Of one search, processor seconds: what else the host does has no say in the answer."""
AGREE = {"plans": 1e-12, "program": 1e-6}
"""How far from 1 a ratio may be; a solver works to a tolerance."""


@dataclass(frozen=True)
class Compared:
    """One instance."""

    against: str
    """``plans``: the enumerator; ``program``: the solver."""
    seed: int
    size: int
    """Plans, or binary variables; 0: no instance, drawn too large or without a plan."""
    what: str
    ratio: float
    """Of the planner's time to the least there is."""
    is_proven: bool
    """The planner knew that no plan is better."""
    memory_binds: bool
    search_s: float
    other_s: float
    """Processor seconds of the planner and of what it is compared with."""


def with_plans(seed: int) -> Compared:
    """Against every plan."""
    problem = instances.draw_wide(seed, MOST_PLANS, brute.count)
    if problem is None:
        return Compared("plans", seed, 0, "", 1.0, True, False, 0.0, 0.0)
    begin_s = time.process_time()
    best = brute.best(problem)
    middle_s = time.process_time()
    try:
        found = search(problem, lambda candidate: True, TIME_S, clock=time.process_time)
    except NoPlanError:
        its = "none found in the time"
        return Compared("plans", seed, best.num_plans, its, inf, False, best.memory_binds, TIME_S, middle_s - begin_s)
    end_s = time.process_time()
    if best.least_s == inf:
        return Compared("plans", seed, 0, "no plan at all", 1.0 if found is None else inf, True, False, 0.0, 0.0)
    devices = sum(group.count for group in problem.machine.groups)
    what = f"{devices} x {problem.work.shape.layers}, {len(problem.machine.groups)} kinds"
    ratio, gap = (found.total_s / best.least_s, found.gap) if found else (inf, inf)
    return Compared("plans", seed, best.num_plans, what, ratio, gap == 0, best.memory_binds,
                    end_s - middle_s, middle_s - begin_s)  # fmt: skip


def with_program(seed: int) -> Compared:
    """Against the solver."""
    from tools.bench import integer_program  # scipy is only needed here

    its = integer_program.compare(seed, TIME_S)
    return Compared("program", seed, its.num_binaries, its.what, its.ratio, its.is_proven, its.memory_binds,
                    its.search_s, its.solver_s)  # fmt: skip


def run(compare: Callable[[int], Compared], against: str, wanted: int, first_seed: int, processes: int,
        file: Path | None) -> list[Compared]:  # fmt: skip
    """So many instances, those of a file first."""
    known = {line["seed"]: Compared(**line) for line in read_json_lines(file) if line["against"] == against} \
        if file and file.exists() else {}  # fmt: skip
    seed = first_seed
    with ProcessPoolExecutor(processes) as pool:
        while True:
            found = [known[its] for its in range(first_seed, seed) if its in known]
            left = wanted - sum(its.size > 0 for its in found)
            if left <= 0:
                return found
            some, seed = range(seed, seed + left), seed + left
            for done in as_completed([pool.submit(compare, its) for its in some if its not in known]):
                its = done.result()
                known[its.seed] = its
                if file:
                    append_json_line(file, asdict(its))


def report(found: list[Compared], against: str) -> int:
    """Print what was found; the number of wrong ones."""
    its = [one for one in found if one.size]
    wrong = [one for one in found if abs(one.ratio - 1) > AGREE[against]]
    for one in wrong:
        print(f"seed {one.seed}: {one.what}, size {one.size}, ratio {one.ratio:.6f}, proven: {one.is_proven}")
    if against == "plans":
        sizes = Counter(len(str(one.size - 1)) for one in its)
        for digits, number in sorted(sizes.items()):
            print(f"{10 ** (digits - 1):>9,} to {10**digits:>9,} plans: {number:>4} instances")
    for what, number in sorted(Counter(one.what for one in its).items()):
        print(f"  {what}: {number}")
    slowest = max((one.search_s for one in its), default=0.0)
    print(
        f"{len(its)} instances, memory binds in {sum(one.memory_binds for one in its)}, "
        f"{len(wrong)} not the best, {sum(not one.is_proven for one in its)} not proven by the planner itself"
    )
    print(f"processor seconds: {sum(one.search_s for one in its):.0f} of the planner, at most {slowest:.1f}; "
          f"{sum(one.other_s for one in its):.0f} of the other")  # fmt: skip
    print(f"worst ratio: {max((one.ratio for one in found), default=1.0):.3f}, "
          f"least: {min((one.ratio for one in found), default=1.0):.3f}")  # fmt: skip
    return len(wrong)


def main() -> int:
    """Compare and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=500)
    parser.add_argument("--programs", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=Path)
    given = parser.parse_args()
    wrong = 0
    for against, compare, wanted in (("plans", with_plans, given.instances), ("program", with_program, given.programs)):
        if wanted:
            print(f"against {'every plan' if against == 'plans' else 'the integer program'}:", flush=True)
            found = run(compare, against, wanted, given.first_seed, given.processes, given.results)
            wrong += report(found, against)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
