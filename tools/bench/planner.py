"""How good a plan is after a given time, for clusters that grow: the whole search, on data-sheet costs.

    python tools/bench/planner.py [--time-s 10]

Prints for each cluster the predicted step, the gap that is left to the bound, and the seconds taken.
"""

from __future__ import annotations

import argparse
import time

from flagvega.errors import NoPlanError
from flagvega.model.shape import ModelShape
from flagvega.model.workload import Choices, Workload
from flagvega.plan.analytic import AnalyticCosts
from flagvega.plan.machine import Group, Link, Machine
from flagvega.plan.search import search
from flagvega.plan.space import Problem

KINDS = (
    ("a", 80, 312, 2.0, 200, 25),
    ("b", 64, 313, 1.6, 196, 25),
    ("c", 32, 125, 0.9, 150, 12),
    ("d", 96, 900, 3.4, 400, 50),
)
"""Name, GiB, TFLOP/s, TB/s of memory, GB/s of links inside a host, GB/s of network."""
CLUSTERS = (("2 types, 64 devices", (4, 4)), ("3 types, 256 devices", (12, 10, 10)),
            ("4 types, 1024 devices", (32, 32, 32, 32)))  # fmt: skip
"""Hosts of eight devices of each kind."""
DEVICES_PER_HOST = 8
SAMPLES_PER_DEVICE = 2


def make_problem(hosts: tuple[int, ...]) -> Problem:
    """A dense model of 70 billion parameters and 80 layers on hosts of eight devices."""
    shape = ModelShape(80, 8192, 64, 8, 128, 28672, 128256)
    batch = 1 << (SAMPLES_PER_DEVICE * DEVICES_PER_HOST * sum(hosts)).bit_length() - 1
    work = Workload(shape, 8192, "bf16", max(batch, 512), max(batch, 512), 4, 12)
    groups = tuple(
        Group(name, (DEVICES_PER_HOST,) * count, memory * 2**30, flops * 1e12, bandwidth * 1e12,
              Link(1e-5, link * 1e9), Link(5e-5, network * 1e9))
        for (name, memory, flops, bandwidth, link, network), count in zip(KINDS, hosts, strict=False)
    )  # fmt: skip
    machine = Machine(groups)
    return Problem(machine, work, Choices(sp=(True,)), AnalyticCosts(work, machine, True), lambda side: True)


def main() -> None:
    """Plan each cluster once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time-s", type=float, default=10.0, help="seconds that each search may take")
    time_s = parser.parse_args().time_s
    print(f"{'cluster':24} {'step':>10} {'gap':>8} {'stages':>7} {'took':>8}")
    for name, hosts in CLUSTERS:
        begin = time.monotonic()
        try:
            found = search(make_problem(hosts), lambda candidate: True, time_s)
        except NoPlanError:
            found = None
        took_s = time.monotonic() - begin
        if found is None:
            print(f"{name:24} {'none':>10} {'':>8} {'':>7} {took_s:>6.1f} s")
        else:
            stages = len(found.candidate.stages)
            print(f"{name:24} {found.total_s:>8.2f} s {found.gap:>8.1%} {stages:>7} {took_s:>6.1f} s")


if __name__ == "__main__":
    main()
