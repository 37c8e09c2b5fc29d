"""Predicted against measured: mixed layouts on emulated chips, planned from a profile of single devices and links.

    python tools/bench/predicted_vs_measured.py           about seven minutes on two cores that do nothing else

The chips' curves are read by nobody but the emulated device. One profile is measured (``action=profile``),
every layout is predicted from it (``action=estimate``, or ``action=plan`` where the layout is left open), then run
by the product. Prints a Markdown table; exits with 1 where a bound is missed. Goes on where it was stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tools.bench.emulated_runs import EmulatedRuns, Measured, Nodes, describe, memory_error, read_command_line, seconds

TIME_BOUND, MEMORY_BOUND, RANK_BOUND = 0.05, 0.10, 0.95


@dataclass(frozen=True)
class Layout:
    """A layout by hand: chip, tp, dp and stages of each mesh; without meshes the planner chooses."""

    nodes: Nodes
    meshes: Sequence[tuple[str, int, int, int]] = ()
    split: Sequence[int] = ()
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def system(self) -> dict[str, Any]:
        """The keys of the YAML that say so."""
        if not self.meshes:
            return dict(self.more)
        return {
            "pipeline_model_parallel_size": len(self.split),
            "sequence_parallel": any(tp > 1 for _, tp, _, _ in self.meshes),
            "hetero": {
                "enable_hetero": True,
                "hetero_process_meshes": [n for _, tp, dp, pp in self.meshes for n in (tp, 1, 1, dp, pp)],
                "hetero_device_types": [chip for chip, *_ in self.meshes],
                "hetero_pipeline_layer_split": list(self.split),
            },
            **self.more,
        }


_AGAIN = {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 2}
LAYOUTS: Mapping[str, Layout] = {
    "s-l": Layout((("emu-s", 1), ("emu-l", 1)), [("emu-s", 1, 1, 1), ("emu-l", 1, 1, 1)], (2, 4)),
    "l-s": Layout((("emu-s", 1), ("emu-l", 1)), [("emu-l", 1, 1, 1), ("emu-s", 1, 1, 1)], (5, 1)),
    "m-l": Layout((("emu-m", 1), ("emu-l", 1)), [("emu-m", 1, 1, 1), ("emu-l", 1, 1, 1)], (2, 4)),
    "m-s": Layout((("emu-m", 1), ("emu-s", 1)), [("emu-m", 1, 1, 1), ("emu-s", 1, 1, 1)], (4, 2)),
    "s-m-l": Layout(
        (("emu-s", 1), ("emu-m", 1), ("emu-l", 1)),
        [("emu-s", 1, 1, 1), ("emu-m", 1, 1, 1), ("emu-l", 1, 1, 1)], (1, 2, 3),
    ),
    "s-m2-l": Layout(
        (("emu-s", 1), ("emu-m", 2), ("emu-l", 1)),
        [("emu-s", 1, 1, 1), ("emu-m", 1, 2, 1), ("emu-l", 1, 1, 1)], (1, 3, 2),
    ),
    "m-l-tp2": Layout((("emu-m", 1), ("emu-l", 2)), [("emu-m", 1, 1, 1), ("emu-l", 2, 1, 1)], (2, 4)),
    "s-tp2-l": Layout((("emu-s", 2), ("emu-l", 1)), [("emu-s", 2, 1, 1), ("emu-l", 1, 1, 1)], (3, 3)),
    "m-m-l": Layout((("emu-m", 2), ("emu-l", 1)), [("emu-m", 1, 1, 2), ("emu-l", 1, 1, 1)], (2, 2, 2)),
    "s-l-l": Layout((("emu-s", 1), ("emu-l", 2)), [("emu-s", 1, 1, 1), ("emu-l", 1, 1, 2)], (1, 3, 2)),
    "m2-l2": Layout((("emu-m", 2), ("emu-l", 2)), [("emu-m", 1, 2, 1), ("emu-l", 1, 2, 1)], (2, 4)),
    "s2-l": Layout((("emu-s", 2), ("emu-l", 1)), [("emu-s", 1, 2, 1), ("emu-l", 1, 1, 1)], (2, 4)),
    "again": Layout((("emu-m", 1), ("emu-l", 1)), [("emu-m", 1, 1, 1), ("emu-l", 1, 1, 1)], (3, 3), _AGAIN),
    "planned-s-m": Layout((("emu-s", 1), ("emu-m", 2))),
    "planned-s-l": Layout((("emu-s", 2), ("emu-l", 1))),
    "planned-s-m-l": Layout((("emu-s", 1), ("emu-m", 1), ("emu-l", 1))),
}  # fmt: skip


@dataclass(frozen=True)
class Compared:
    """One layout, predicted and measured."""

    name: str
    plan: Mapping[str, Any]
    measured: Measured

    @property
    def predicted_s(self) -> float:
        """Of an iteration."""
        return float(self.plan["predictions"]["iteration_s"])

    @property
    def error(self) -> float:
        """Predicted over measured time, less 1."""
        return self.predicted_s / self.measured.iteration_s - 1

    def row(self) -> str:
        """For the table."""
        cells = [self.name, describe(self.plan), seconds(self.predicted_s), seconds(self.measured.iteration_s)]
        return f"| {' | '.join([*cells, f'{self.error:+.1%}', f'{memory_error(self.plan, self.measured):+.1%}'])} |"


def compare(runs: EmulatedRuns, name: str, layout: Layout) -> Compared:
    """Predict one layout and run it."""
    plan = runs.ask("estimate" if layout.meshes else "plan", name, layout.nodes, layout.system)["plan"]
    return Compared(name, plan, runs.measure(name, layout.nodes, plan))


def rank_correlation(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Spearman's, of values without ties."""
    places, others = ([sorted(values).index(value) for value in values] for values in (xs, ys))
    num = len(xs)
    return 1 - 6 * sum((a - b) * (a - b) for a, b in zip(places, others, strict=True)) / (num * (num * num - 1))


def judge(found: Sequence[Compared]) -> bool:
    """Print the summary; whether every bound holds."""
    error = fmean(abs(its.error) for its in found)
    rank = rank_correlation([its.predicted_s for its in found], [its.measured.iteration_s for its in found])
    memory = max((memory_error(its.plan, its.measured) for its in found), key=abs)
    print(f"{len(found)} layouts: largest error {max(abs(its.error) for its in found):.1%}")
    print(
        f"mean error {error:.2%} (bound {TIME_BOUND:.0%}), rank correlation {rank:.3f} (bound {RANK_BOUND}), "
        f"memory {memory:+.1%} (bound {MEMORY_BOUND:.0%})"
    )
    return error <= TIME_BOUND and rank >= RANK_BOUND and abs(memory) <= MEMORY_BOUND


def main() -> int:
    """Print the table and the summary; 1 when a bound is missed or a layout could not be timed."""
    runs, names = read_command_line(__doc__, list(LAYOUTS), "NAME")
    print("| layout | stages: layers | predicted | measured | error | memory |\n|---|---|---|---|---|---|", flush=True)
    found, untimed = [], []
    for name in names:
        compared = compare(runs, name, LAYOUTS[name])
        if compared.measured.failed or compared.measured.invalid:
            untimed.append(f"{name}: {compared.measured.failed or compared.measured.invalid}")
            continue
        found.append(compared)
        print(compared.row(), flush=True)
    print()
    for line in untimed:
        print(f"not timed: {line}")
    return int(not judge(found) or bool(untimed))


if __name__ == "__main__":
    sys.exit(main())
