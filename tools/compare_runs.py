"""Compares two runs step by step: are their losses and gradient norms the same computation?"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from flagvega.records import read_json_lines

MEASURES = ("loss", "grad_norm")


def read_steps(run: Path) -> dict[int, dict[str, Any]]:
    """The metrics of a run by step; a step that was repeated after a restart counts as last seen."""
    return {line["step"]: line for line in read_json_lines(run / "metrics.jsonl") if "loss" in line}


def difference(left: float, right: float) -> float:
    """Relative to the left one."""
    return abs(left - right) / max(abs(left), 1e-12)


def main() -> int:
    """Print a line a step; 1 when a difference is over the tolerance, 2 when there is nothing to compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("left", type=Path, help="exp_dir of the run to compare with")
    parser.add_argument("right", type=Path, help="exp_dir of the other run")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="largest relative difference (default 1e-5)")
    options = parser.parse_args()
    left, right = read_steps(options.left), read_steps(options.right)
    steps = sorted(left.keys() & right.keys())
    if not steps:
        print(f"no step is in both {options.left} and {options.right}", file=sys.stderr)
        return 2
    worst = 0.0
    print(f"{'step':>6} {'loss':>12} {'loss':>12} {'grad norm':>12} {'grad norm':>12}")
    for step in steps:
        pairs = [(left[step][measure], right[step][measure]) for measure in MEASURES]
        worst = max(worst, *(difference(*pair) for pair in pairs))
        print(f"{step:>6} " + " ".join(f"{value:>12.6f}" for pair in pairs for value in pair))
    same = worst <= options.tolerance
    print(f"{len(steps)} steps, largest relative difference {worst:.1e}: {'equal' if same else 'NOT equal'}")
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())
