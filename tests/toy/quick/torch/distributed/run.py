"""``torchrun`` for ranks of one host, which starts in no time: as many processes as asked for, and their worst code."""

from __future__ import annotations

import os
import subprocess
import sys
import time


def main(words: list[str]) -> int:
    options = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
    count = int(options["--nproc-per-node"])
    program = words[next(i for i, word in enumerate(words) if not word.startswith("-")) :]
    ranks = [subprocess.Popen(program, env={**os.environ, "LOCAL_RANK": str(i)}) for i in range(count)]
    while any(rank.poll() is None for rank in ranks):
        if any(rank.poll() for rank in ranks):
            for rank in ranks:
                rank.kill()
        time.sleep(0.01)
    return max(abs(rank.wait()) for rank in ranks)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
