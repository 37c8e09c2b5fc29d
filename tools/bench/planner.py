"""How fast the planner is and how near the best its plans are, for clusters that grow; on data-sheet costs.

    python tools/bench/planner.py                 the three bounds, each in a process of its own
    python tools/bench/planner.py --growth FILE   also how it grows with devices, kinds of chips and layers, as SVG

Judged are the processor seconds of the whole process, start and imports included, and its memory. The planner uses
one thread, so on an idle machine these are wall-clock seconds too. Exit code 1 when a bound is missed; the last line
is the worst ratio of seconds to bound.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from flagvega.errors import NoPlanError
from flagvega.model.shape import ModelShape
from flagvega.model.workload import Choices, Workload
from flagvega.plan.analytic import AnalyticCosts
from flagvega.plan.machine import Group, Link, Machine
from flagvega.plan.search import search
from flagvega.plan.space import Candidate, Problem

KINDS = (
    ("a", 80, 312, 2.0, 200, 25),
    ("b", 64, 313, 1.6, 196, 25),
    ("c", 32, 125, 0.9, 150, 12),
    ("d", 96, 900, 3.4, 400, 50),
    ("e", 48, 180, 0.9, 32, 12),
    ("f", 128, 400, 3.2, 256, 25),
)
"""Name, GiB, TFLOP/s, TB/s of memory, GB/s of links inside a host, GB/s of network."""
DEVICES_PER_HOST = 8
SAMPLES_PER_DEVICE = 2


@dataclass(frozen=True)
class Instance:
    """A problem, the seconds that the search may take, and the bounds of the whole process."""

    name: str
    hosts: tuple[int, ...]
    """Of eight devices each, by kind of chip."""
    search_s: float
    bound_s: float
    bound_gib: float = 1.0
    whole_hosts: bool = False
    """A stage is one host with tp 8: only order, layers, recompute and slow boundaries are open."""
    layers: int = 80


INSTANCES = (
    Instance("32 hosts of 3 kinds, a stage is a host", (12, 10, 10), 0.6, 1.0, whole_hosts=True),
    Instance("1,024 devices of 4 kinds, all open", (32, 32, 32, 32), 4.2, 5.0),
    Instance("10,000 devices of 6 kinds, all open", (209, 209, 208, 208, 208, 208), 26.0, 30.0),
)


def make_problem(hosts: tuple[int, ...], layers: int = 80, whole_hosts: bool = False) -> Problem:
    """A dense model (70 billion parameters with 80 layers) on hosts of eight devices."""
    shape = ModelShape(layers, 8192, 64, 8, 128, 28672, 128256)
    batch = max(512, 1 << (SAMPLES_PER_DEVICE * DEVICES_PER_HOST * sum(hosts)).bit_length() - 1)
    work = Workload(shape, 8192, "bf16", batch, 1 if whole_hosts else batch, 4, 12)
    choices = Choices(sp=(True,), tp=(8,) if whole_hosts else None)
    groups = tuple(
        Group(name, (DEVICES_PER_HOST,) * count, memory * 2**30, flops * 1e12, bandwidth * 1e12,
              Link(1e-5, link * 1e9), Link(5e-5, network * 1e9))
        for (name, memory, flops, bandwidth, link, network), count in zip(KINDS, hosts, strict=False)
    )  # fmt: skip
    machine = Machine(groups)
    return Problem(machine, work, choices, AnalyticCosts(work, machine, True), lambda side: True)


def plan(instance: Instance) -> dict[str, float | None]:
    """Plan in this process, and say what it took since it was started."""
    first_s: list[float] = []

    def accept(candidate: Candidate) -> bool:
        first_s.append(time.process_time())
        return True

    problem = make_problem(instance.hosts, instance.layers, instance.whole_hosts)
    try:
        found = search(problem, accept, instance.search_s, clock=time.process_time)
    except NoPlanError:
        found = None
    return {
        "step_s": found.total_s if found else None,
        "gap": found.gap if found else None,
        "stages": len(found.candidate.stages) if found else None,
        "first_s": first_s[0] if first_s else None,
        "cpu_s": time.process_time(),
        "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def measure(instance: Instance) -> dict[str, float | None]:
    """Plan in a process of its own."""
    code = f"import json,sys; sys.path[:0] = {sys.path!r}; from tools.bench.planner import *; "
    done = subprocess.run([sys.executable, "-c", f"{code}print(json.dumps(plan({instance!r})))"],
                          check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])  # fmt: skip
    found: dict[str, float | None] = json.loads(done.stdout)
    return found


def row(name: str, found: dict[str, float | None]) -> str:
    """One line of the table."""
    its = {key: value if value is not None else float("nan") for key, value in found.items()}
    return (f"{name:42}{its['step_s']:>9.2f} s{its['gap']:>8.1%}{its['stages']:>8.0f}{its['first_s']:>8.2f} s"
            f"{its['cpu_s']:>8.2f} s{its['gib']:>7.2f}")  # fmt: skip


HEAD = f"{'cluster':42}{'step':>11}{'gap':>8}{'stages':>8}{'first':>10}{'took':>10}{'GiB':>7}"


def judge() -> float:
    """The worst ratio of seconds, or memory, to their bounds."""
    print(HEAD)
    worst = 0.0
    for instance in INSTANCES:
        found = measure(instance)
        print(row(instance.name, found), f"  bound {instance.bound_s:g} s")
        if found["cpu_s"] is None or found["gib"] is None or found["step_s"] is None:
            worst = float("inf")
        else:
            worst = max(worst, found["cpu_s"] / instance.bound_s, found["gib"] / instance.bound_gib)
    return worst


def grow(path: Path) -> None:
    """Seconds to the first plan and gap after three seconds, over devices, kinds of chips and layers."""
    base = Instance("", (8, 8), 3.0, 0.0)
    series = {
        "devices (2 kinds, 80 layers)": [(16 * n, replace(base, hosts=(n, n))) for n in (1, 4, 16, 64, 256)],
        "kinds of chips (256 devices)": [(n, replace(base, hosts=(32 // n,) * n)) for n in (1, 2, 3, 4, 5, 6)],
        "layers (128 devices, 2 kinds)": [(n, replace(base, layers=n)) for n in (10, 20, 40, 80, 120)],
    }
    print(HEAD)
    panels: list[str] = []
    for title, points in series.items():
        measured = []
        for x, instance in points:
            found = measure(instance)
            print(row(f"{title}: {x}", found))
            measured.append((x, found["first_s"], found["gap"]))
        panels.append(_panel(title, measured, 260 * len(panels)))
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{260 * len(panels)}" height="230" font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="white"/>{"".join(panels)}</svg>\n'
    )


def _panel(title: str, points: list[tuple[int, float | None, float | None]], left: int) -> str:
    """Bars: seconds to the first plan; below each the gap that was left."""
    most = max((y for _, y, _ in points if y), default=1.0)
    parts = [f'<text x="{left + 10}" y="18" font-weight="bold">{title}</text>']
    width = 240 / len(points)
    for i, (x, y, gap) in enumerate(points):
        height, middle = 130 * (y or 0) / most, left + 10 + width * (i + 0.5)
        parts.append(
            f'<rect x="{middle - 12}" y="{170 - height:.1f}" width="24" height="{height:.1f}" fill="#4477aa"/>'
            f'<text x="{middle}" y="{164 - height:.1f}" text-anchor="middle">{f"{y:.2f} s" if y else "none"}</text>'
            f'<text x="{middle}" y="186" text-anchor="middle">{x}</text>'
            f'<text x="{middle}" y="202" text-anchor="middle" fill="#a33">{"" if gap is None else f"{gap:.0%}"}</text>'
        )
    parts.append(f'<text x="{left + 10}" y="222" fill="#aa3333">gap left after 3 s</text>')
    return "".join(parts)


def main() -> int:
    """Measure and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--growth", type=Path, help="write a picture of the growth here")
    growth = parser.parse_args().growth
    worst = judge()
    if growth is not None:
        grow(growth)
    print(f"worst ratio to its bound: {worst:.2f}")
    return int(worst > 1)


if __name__ == "__main__":
    sys.exit(main())
