"""Is the planned layout better? On mixes of emulated chips it is run against plainer ones, all measured alike.

    python tools/bench/better.py           about ten minutes on two cores that do nothing else

For each mix: the planner's layout; the same meshes with layers split evenly; the same with layers split by
the chips' peak FLOP/s; and the best of the mix's kinds of chips alone, planned as well. Ratios are measured time
over measured time; where a plainer layout is the planned one they tie. Exits with 1 where the planned layout
loses by more than the noise of a run. Goes on where it was stopped.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import geometric_mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from flagvega.plan.explain import apportion
from flagvega.platform import find_chip
from tools.bench.emulated_runs import OUT_OF_MEMORY, EmulatedRuns, Nodes, describe, read_command_line, seconds

NOISE = 0.01
"""By how much a layout that is as good may measure faster."""
NEAR = 1.3
"""Kinds of chips whose plan is predicted to be this much slower than the best kind's are not run."""
PINS: Mapping[str, Any] = {"micro_batch_size": 2}
MIXES: Mapping[str, Nodes] = {
    "s m": (("emu-s", 1), ("emu-m", 1)),
    "m l": (("emu-m", 1), ("emu-l", 1)),
    "2s l": (("emu-s", 2), ("emu-l", 1)),
    "2m l": (("emu-m", 2), ("emu-l", 1)),
    "s m l": (("emu-s", 1), ("emu-m", 1), ("emu-l", 1)),
    "s 2m l": (("emu-s", 1), ("emu-m", 2), ("emu-l", 1)),
}


@dataclass(frozen=True)
class Rival:
    """A plainer layout and what it took; infinite where it did not fit."""

    name: str
    plan: Mapping[str, Any]
    iteration_s: float
    is_same: bool = False
    """It is the planned layout."""


def with_split(plan: Mapping[str, Any], weights: Sequence[float]) -> dict[str, Any]:
    """The same meshes with layers in proportion to weights, one of each stage."""
    other = copy.deepcopy(dict(plan))
    del other["predictions"]
    chain = other["decisions"]["chain"]
    begin = 0
    for chunk, count in zip(chain, apportion(list(weights), chain[-1]["layers"][1]), strict=True):
        chunk["layers"] = [begin, begin + count]
        begin += count
    return other


def peak_flops(plan: Mapping[str, Any]) -> list[float]:
    """What the data sheets say of each stage's devices together."""
    decisions = plan["decisions"]
    found = []
    for stage in decisions["stages"]:
        mesh = decisions["meshes"][stage["replicas"][0]["mesh"]]
        found.append(len(mesh["devices"]) * (find_chip(mesh["chip"]).peak_flops or {})["fp32"])
    return found


def run(runs: EmulatedRuns, name: str, nodes: Nodes, plan: Mapping[str, Any]) -> float:
    """Measured seconds of an iteration; infinite where the layout does not fit."""
    measured = runs.measure(name, nodes, plan)
    if measured.failed == OUT_OF_MEMORY:
        return inf
    if measured.failed or measured.invalid:
        raise SystemExit(f"{name} could not be timed: {measured.failed or measured.invalid}")
    return measured.iteration_s


def alone(runs: EmulatedRuns, nodes: Nodes) -> Rival:
    """The best kind of chip of a mix, planned without the others."""
    plans = {}
    for chip, count in nodes:
        name = f"{count}-{chip}-alone"
        plans[name] = (chip, count), runs.ask("plan", name, ((chip, count),), PINS)["plan"]
    least_s = min(plan["predictions"]["iteration_s"] for _, plan in plans.values())
    found = []
    for name, (node, plan) in plans.items():
        if plan["predictions"]["iteration_s"] <= NEAR * least_s:
            found.append(Rival(f"{node[1]} x {node[0]} alone", plan, run(runs, name, (node,), plan)))
    return min(found, key=lambda rival: rival.iteration_s)


def compare(runs: EmulatedRuns, mix: str) -> tuple[Rival, list[Rival]]:
    """The planned layout of a mix, and its rivals."""
    nodes, name = MIXES[mix], mix.replace(" ", "-")
    plan = runs.ask("plan", name, nodes, PINS)["plan"]
    planned = Rival("planned", plan, run(runs, f"{name}-planned", nodes, plan))
    rivals = []
    for word, weights in (("even", [1.0] * len(plan["decisions"]["stages"])), ("peak", peak_flops(plan))):
        other = with_split(plan, weights)
        is_same = other["decisions"] == plan["decisions"]
        taken_s = planned.iteration_s if is_same else run(runs, f"{name}-{word}", nodes, other)
        rivals.append(Rival(word, other, taken_s, is_same))
    return planned, [*rivals, alone(runs, nodes)]


def row(mix: str, planned: Rival, rivals: Sequence[Rival]) -> str:
    """For the table."""
    cells = [mix, describe(planned.plan), seconds(planned.iteration_s)]
    for rival in rivals:
        words = "the same" if rival.is_same else f"{rival.iteration_s / planned.iteration_s:.2f}"
        if rival.iteration_s == inf:
            words = "does not fit"
        cells.append(f"{words} ({describe(rival.plan)})")
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Print the table and the summary; 1 when the planned layout loses anywhere."""
    runs, mixes = read_command_line(__doc__, list(MIXES), "MIX")
    print(
        "| chips | planned | step | even split | split by peak | best kind alone |\n|---|---|---|---|---|---|",
        flush=True,
    )
    ratios: list[list[float]] = [[], [], []]
    for mix in mixes:
        planned, rivals = compare(runs, mix)
        for found, rival in zip(ratios, rivals, strict=True):
            found.append(rival.iteration_s / planned.iteration_s)
        print(row(mix, planned, rivals), flush=True)
    worst = min(ratio for found in ratios for ratio in found)
    means = [geometric_mean([ratio for ratio in found if ratio < inf] or [1.0]) for found in ratios]
    print(
        f"\nplainer over planned, geometric mean: even split {means[0]:.2f}, split by peak {means[1]:.2f}, "
        f"best kind alone {means[2]:.2f}"
    )
    print(f"least ratio {worst:.3f} over {len(mixes)} mixes (bound {1 - NOISE})")
    return int(worst < 1 - NOISE)


if __name__ == "__main__":
    sys.exit(main())
