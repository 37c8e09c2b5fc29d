"""Measures what handing a prompt over takes, from an instance that reads to one that writes.

``python -P -m flagvega.serve.measure_pair --run-dir DIR``: started by the keeper of a run with the two. Its answers are
lines of ``measured.jsonl``, as :mod:`flagvega.serve.measure` has them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Final

from flagvega.records import append_json_line, read_json, read_json_lines
from flagvega.serve.gateway.handover import KEEP
from flagvega.serve.gateway.question import TRANSFER
from flagvega.serve.load import LoadError
from flagvega.serve.measure import ANSWERS_FILE, MEASURE_FILE, READ_TIMES, WAIT_S, reading_lengths
from flagvega.serve.probe import KEY_ENV, ask, find_trouble, read_max_tokens

ASK_S: Final = 60.0
TOKENS: Final = range(1, 200)
"""Every model has these."""


def measure_pair(run_dir: Path) -> None:
    """Prompts of several lengths, one at a time; what has an answer is not measured again."""
    job = read_json(run_dir / MEASURE_FILE)
    while any(find_trouble(url, job["model"]) for url in job["urls"]):
        time.sleep(WAIT_S)
    most = read_max_tokens(job["urls"][0], ASK_S)
    rng, file = Random(0), run_dir / ANSWERS_FILE
    known = {row["number"] for row in read_json_lines(file)}
    for tokens in reading_lengths(most, job["step_tokens"]):
        if tokens in known:
            continue
        prompts = [rng.choices(TOKENS, k=tokens) for _ in range(READ_TIMES)]
        seconds = median(_hand_over(job, prompt) for prompt in prompts)
        append_json_line(file, {"what": "handover", "number": tokens, "first_token_s": seconds})
    append_json_line(file, {"what": "done", "number": None})


def _hand_over(job: Mapping[str, Any], prompt: Sequence[int]) -> float:
    """Seconds to the first token of who writes, since who reads has answered."""
    reader, writer = (f"{url}/v1/completions" for url in job["urls"])
    question = {"model": job["model"], "prompt": prompt, "max_tokens": 1, "temperature": 0}
    kept = json.loads(ask(reader, question | {TRANSFER: KEEP}, ASK_S, KEY_ENV)).get(TRANSFER)
    if not isinstance(kept, dict):
        raise LoadError("the instance that reads says nothing of a cache")
    begun_s = time.perf_counter()
    ask(writer, question | {TRANSFER: kept}, ASK_S, KEY_ENV)
    return time.perf_counter() - begun_s


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the two instances of the run in ``--run-dir``."""
    parser = argparse.ArgumentParser(description="Measure what handing a prompt over takes.")
    parser.add_argument("--run-dir", type=Path, required=True)
    measure_pair(parser.parse_args(argv).run_dir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
