"""Whether the planner's plan is the best there is: against an enumerator that shares only the costs with it.

    python tools/bench/optimality.py [--instances 500] [--first-seed 1000]

Draws random problems (two or three kinds of chips, two to six layers, memory binding in about half), leaves out those
of more than a million plans, and compares the simulated time of the planner's plan with the least of all plans. Prints
a histogram of the numbers of plans; the last line is the worst ratio. Exit code 1 when one is not 1.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from itertools import islice
from math import inf
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from flagvega.plan.search import search
from flagvega.plan.simulate import simulate
from flagvega.plan.space import cost_candidate, make_pipeline
from tests.unit.plan import brute, instances

MOST_PLANS = 10**6
_ROUNDING = 1e-12


def compare(seed: int) -> tuple[int, float, bool] | None:
    """(number of plans, ratio of times, proven) of one instance; None when it is too large."""
    problem = instances.draw(seed, max_layers=6, max_devices=3)
    if sum(1 for _ in islice(brute.candidates(problem), MOST_PLANS + 1)) > MOST_PLANS:
        return None
    least_s, number = brute.best(problem)
    found = search(problem, lambda candidate: True, 120)
    if found is None or least_s == inf:
        return number, 1.0 if found is None and least_s == inf else inf, True
    candidate = found.candidate
    costs = problem.stage_costs(candidate.samples)
    again_s = simulate(make_pipeline(candidate, costs, cost_candidate(candidate, costs))).total_s
    return number, again_s / least_s, found.gap == 0


def main() -> int:
    """Compare and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=500)
    parser.add_argument("--first-seed", type=int, default=1000)
    given = parser.parse_args()
    sizes, worst, unproven, wrong, seed = Counter[int](), 0.0, 0, 0, given.first_seed
    while sizes.total() < given.instances:
        compared = compare(seed)
        if compared is not None:
            number, ratio, proven = compared
            sizes[len(str(number))] += 1
            worst = max(worst, ratio)
            unproven += not proven
            if abs(ratio - 1) > _ROUNDING:
                wrong += 1
                print(f"seed {seed}: {number} plans, ratio {ratio:.6f}")
        seed += 1
    for digits, count in sorted(sizes.items()):
        print(f"{10 ** (digits - 1):>9,} to {10**digits - 1:>9,} plans: {count:>4} instances")
    print(f"{sizes.total()} instances, {wrong} not the best, {unproven} not proven")
    print(f"worst ratio to the best of all plans: {worst:.3f}")
    return int(wrong > 0 or unproven > 0)


if __name__ == "__main__":
    sys.exit(main())
