"""Measures what an instance can do, from one sequence at a time to as many as still gain something.

``python -P -m flagvega.serve.measure --run-dir DIR``: started by the keeper of a run with one instance. Each answer is
a line of ``measured.jsonl`` as it comes, and what has an answer is not measured again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

from flagvega.records import append_json_line, read_json, read_json_lines
from flagvega.serve.load import Bench, LoadError
from flagvega.serve.probe import find_trouble, read_cache_tokens, read_max_tokens
from flagvega.serve.traffic import Outcome, Targets, Traffic, fixed
from flagvega.server import Command

MEASURE_FILE: Final = "job/measure.json"
ANSWERS_FILE: Final = "measured.jsonl"
BENCH_LOG: Final = "logs/bench.log"
WAIT_S: Final = 0.5
SHARES: Final = (1 / 16, 1 / 4, 1 / 2, 1)
"""Of the longest prompt: lengths that are read alone."""
READ_TIMES: Final = 5
OUTPUT_TOKENS: Final = 48
"""Of the answers behind a level: so many steps."""
LEAST_GAIN: Final = 0.03
"""In tokens a second over the level before: an instance that gains less has enough to do."""
ASK_S: Final = 10.0


class Measuring:
    """The questions of one instance, in turn."""

    def __init__(self, run_dir: Path, bench: Bench) -> None:
        self.job: Mapping[str, Any] = read_json(run_dir / MEASURE_FILE)
        self.file, self.bench = run_dir / ANSWERS_FILE, bench
        self.known = {(row["what"], row.get("number")): row for row in read_json_lines(self.file)}

    def run(self) -> None:
        """Until everything is measured."""
        self.bench.wait()  # before the instance is there, for both need processors to begin
        while find_trouble(self.job["url"], self.job["model"]):
            time.sleep(WAIT_S)
        limits = self._answer("limits", None, self._limits)
        given = self.job["input_tokens"]
        if limits["max_tokens"]:
            given = min(given, limits["max_tokens"] // 2)
        for tokens in reading_lengths(limits["max_tokens"], self.job["step_tokens"]):
            self._answer("reading", tokens, partial(self._reading, tokens))
        before = 0.0
        for number in level_numbers(self.job["slots"]):
            needed = number * (given + OUTPUT_TOKENS)
            if number > 1 and limits["cache_tokens"] and needed > limits["cache_tokens"]:
                break
            level = self._answer("level", number, partial(self._level, number, given, limits["max_tokens"]))
            if level["tokens_per_s"] < (1 + LEAST_GAIN) * before:
                break
            before = level["tokens_per_s"]
        self._answer("done", None, dict)

    def _answer(self, what: str, number: int | None, measure: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        known = self.known.get((what, number))
        if known is None:
            known = {"what": what, "number": number, **measure()}
            append_json_line(self.file, known)
        return known

    def _limits(self) -> dict[str, Any]:
        """What the instance says of itself."""
        url = self.job["url"]
        return {
            "max_tokens": read_max_tokens(url, ASK_S),
            "cache_tokens": read_cache_tokens(url, self.job["cache_label"], ASK_S),
        }

    def _reading(self, tokens: int) -> dict[str, Any]:
        outcome = self._load(Traffic(fixed(tokens), fixed(1), concurrency=1, num_requests=READ_TIMES))
        return {"first_token_s": outcome.first_token_s.p50, "host_busy": outcome.host_busy}

    def _level(self, number: int, given: int, max_tokens: int | None) -> dict[str, Any]:
        """All at once, and answers alike: from their first tokens to their last, each step has all of them."""
        length = min(OUTPUT_TOKENS, max_tokens - given) if max_tokens else OUTPUT_TOKENS
        outcome = self._load(Traffic(fixed(given), fixed(length), concurrency=number, num_requests=number))
        return {
            "input_tokens": given,
            "step_s": median(gap for answer in outcome.answers for gap in answer.gaps_s),
            "tokens_per_s": outcome.output_tokens_per_s,
            "first_token_s": outcome.first_token_s.p50,
            "host_busy": outcome.host_busy,
        }

    def _load(self, traffic: Traffic) -> Outcome:
        job = self.job
        outcome = self.bench.measure(job["url"], job["model"], job["tokenizer"], traffic, Targets())
        if outcome.failures:
            error = next(answer.error for answer in outcome.answers if answer.error)
            raise LoadError(f"{outcome.failures} of {outcome.num_requests} requests failed: {error}")
        return outcome


def reading_lengths(max_tokens: int | None, step_tokens: int) -> list[int]:
    """Lengths of prompts to read alone: up to what fits, and not more than a step or two take in."""
    longest = min(max_tokens - 1 if max_tokens else step_tokens, step_tokens)
    return sorted({max(1, round(share * longest)) for share in SHARES})


def level_numbers(slots: int) -> list[int]:
    """1, 2, 4 and so on, and all slots."""
    numbers = [1]
    while 2 * numbers[-1] < slots:
        numbers.append(2 * numbers[-1])
    return numbers if slots == 1 else [*numbers, slots]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the instance of the run in ``--run-dir``."""
    parser = argparse.ArgumentParser(description="Measure what the instance of a run can do.")
    parser.add_argument("--run-dir", type=Path, required=True)
    run_dir = parser.parse_args(argv).run_dir
    bench = read_json(run_dir / MEASURE_FILE)["bench"]
    with Bench(Command(tuple(bench["argv"]), bench["env"]), run_dir / BENCH_LOG) as running:
        Measuring(run_dir, running).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
