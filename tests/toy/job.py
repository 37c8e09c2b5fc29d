"""Launches of the toy rank program."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from flagvega.launch.rendezvous import Rendezvous
from flagvega.launch.script import Launch
from flagvega.layout.job import Job, NodeJob

PROGRAM = Path(__file__).with_name("rank.py")
ROOT = PROGRAM.parents[2]


def toy_launch(
    run_dir: Path,
    *words: str,
    num_ranks: int = 2,
    env: dict[str, str] | None = None,
    grace_s: int = 20,
    **more: str,
) -> Launch:
    """A job of one host whose ranks get ``words`` as arguments."""
    argv = (sys.executable, "-P", str(PROGRAM), "--run-dir", str(run_dir), *words)
    node = NodeJob(0, "localhost", num_ranks, argv, {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(env or {})})
    return Launch(
        run_dir=run_dir,
        directory=Path(os.getcwd()),
        job=Job((node,), {"plan.json": {"toy": True}}),
        ranks=(tuple(range(num_ranks)),),
        rendezvous=Rendezvous(),
        grace_s=grace_s,
        **more,
    )
