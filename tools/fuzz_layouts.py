"""Draw random legal layouts and hold each to the one-process run, for hours.

fuzz_layouts.py --hours 2
fuzz_layouts.py --cases 50 --seed 7
fuzz_layouts.py --layout 'llama tp2 sp | dp3 micro=3 split=[1,3]'

Each line printed is a layout and its largest relative deviation. One that fails is written to --failures too, and
--layout runs it again. The exit code is 1 when any has failed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from flagvega.errors import FlagvegaError  # noqa: E402
from tests.rank.client import RankError, Server  # noqa: E402
from tests.rank.draw import draw_line  # noqa: E402
from tests.rank.gate import TOLERANCE, Gate  # noqa: E402


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 when every layout computed what one process computes."""
    options = parse(argv)
    failed: list[str] = []
    num_done = 0
    with Server() as server, tempfile.TemporaryDirectory() as root:
        gate = Gate(server, Path(root))
        for line in lines(options):
            is_equal, verdict = judge(gate, line)
            num_done += 1
            print(f"{verdict}  {line}", flush=True)
            if not is_equal:
                failed.append(line)
                options.failures.parent.mkdir(parents=True, exist_ok=True)
                with options.failures.open("a", encoding="utf-8") as file:
                    file.write(f"{line}\n")
            for done in Path(root).glob("run-*"):
                shutil.rmtree(done)
    print(f"{num_done} layouts, {len(failed)} failed (tolerance {TOLERANCE})")
    for line in failed:
        print(f"python tools/fuzz_layouts.py --layout '{line}'")
    return int(bool(failed))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=1.0, help="how long to go on (default: %(default)s)")
    parser.add_argument("--cases", type=int, default=None, help="how many layouts at most")
    parser.add_argument("--seed", type=int, default=None, help="of the first layout, counted up (default: the time)")
    parser.add_argument("--layout", action="append", help="run this line instead of drawing; may be repeated")
    parser.add_argument("--failures", type=Path, default=ROOT / "outputs" / "fuzz_failures.txt", help="their lines")
    return parser.parse_args(argv)


def lines(options: argparse.Namespace) -> Iterator[str]:
    """The layouts to run."""
    if options.layout:
        yield from options.layout
        return
    deadline = time.monotonic() + options.hours * 3600
    seed = int(time.time()) if options.seed is None else options.seed
    num_drawn = 0
    while time.monotonic() < deadline and num_drawn != options.cases:
        yield draw_line(Random(seed + num_drawn))
        num_drawn += 1


def judge(gate: Gate, line: str) -> tuple[bool, str]:
    """Whether a layout computes what one process computes, and its deviation or what went wrong."""
    try:
        found = gate.deviation(line)
    except (RankError, FlagvegaError) as error:
        return False, f"FAILED: {error}\n"
    return found < TOLERANCE, f"{found:.1e}" if found < TOLERANCE else f"{found:.1e} FAILED"


if __name__ == "__main__":
    sys.exit(main())
