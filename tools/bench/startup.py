"""Times the dry-run of the demo, as a user starts it, and holds it to two seconds."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ["run.py", "--config-path", "examples/llama/conf", "--config-name", "demo", "action=dryrun"]


def time_dryrun_s() -> float:
    """Wall time of one dry-run in a new process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *COMMAND], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> int:
    """Print the times; 1 when the median is over the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="runs after one that warms the file cache (default 5)")
    parser.add_argument("--limit-s", type=float, default=2.0, help="longest median that passes (default 2.0)")
    options = parser.parse_args()
    time_dryrun_s()
    times = [time_dryrun_s() for _ in range(options.repeats)]
    median = statistics.median(times)
    print(f"dryrun of the demo: median {median:.2f} s, fastest {min(times):.2f} s, limit {options.limit_s:.2f} s")
    return int(median > options.limit_s)


if __name__ == "__main__":
    sys.exit(main())
