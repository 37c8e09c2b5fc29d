"""How a run ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flagvega.run.verdict import describe_death, find_culprit, judge, last_words

AGENT_LOG = """\
Other Failures:
[1]:
  time      : 2026-11-20_19:09:46
  rank      : 2 (local_rank: 2)
  exitcode  : {second} (pid: 14288)
Root Cause (first observed failure):
[0]:
  rank      : 0 (local_rank: 0)
  exitcode  : {first} (pid: 14287)
"""


def say(code: int, time: float = 0.0, reason: str = "") -> dict[str, Any]:
    return {"event": "exit", "code": code, "time": time, "reason": reason}


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([0, 0], 0),
        ([143, 143], 143),
        ([0, 143], 143),
        ([130, 130], 130),
        ([75, None], 75),
        ([75, 93], 93),
        ([143, 93], 93),
        ([4, None], 4),
        ([75, 4], 4),
        ([143, None], None),
        ([0, None], None),
        ([1, 0], None),
        ([None, None], None),
    ],
)
def test_a_rank_can_forbid_a_restart_alone_but_all_must_agree_that_all_is_well(
    codes: list[int | None], expected: int | None
) -> None:
    verdict = judge({rank: None if code is None else say(code) for rank, code in enumerate(codes)})
    assert (verdict and verdict.exit_code) == expected


def test_the_culprit_is_the_one_that_was_killed_not_those_that_missed_it() -> None:
    log = AGENT_LOG.format(first=1, second=-9)
    assert find_culprit(log, (4, 5, 6), {4: say(1), 5: None, 6: None}) == 6


def test_the_culprit_is_the_first_that_told_of_an_exception() -> None:
    log = AGENT_LOG.format(first=1, second=1)
    assert find_culprit(log, (4, 5, 6), {4: say(1, 2.0), 5: None, 6: say(1, 1.0)}) == 6


def test_a_rank_that_torchrun_ended_is_no_culprit() -> None:
    forced = "W1120 api.py:1047] Unable to shutdown process 14287 via 15, forcefully exiting via 9\n"
    assert find_culprit(forced + AGENT_LOG.format(first=-9, second=1), (0, 1, 2), {}) == 2
    assert find_culprit(AGENT_LOG.format(first=-15, second=3), (0, 1, 2), {}) == 2
    assert find_culprit("nothing", (0,), {0: None}) is None


def test_the_last_traceback_of_a_log_is_shown_else_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("a\nTraceback (most recent call last)\nold\nTraceback (most recent call last)\nValueError: new\n")
    assert last_words(log) == "Traceback (most recent call last)\nValueError: new"
    frames = "\n".join(f"[rank2]:   frame {i}" for i in range(100))
    log.write_text(f"[rank2]: Traceback (most recent call last):\n{frames}\n[rank2]: OutOfMemoryError: 3 GiB\nwanted\n")
    assert last_words(log).splitlines()[-3:] == ["  frame 99", "OutOfMemoryError: 3 GiB", "wanted"]
    log.write_text("\n".join(map(str, range(100))))
    assert last_words(log).splitlines()[-1] == "99"
    assert last_words(tmp_path / "none") == ""


def test_deaths_are_told_in_words() -> None:
    assert describe_death(3) == "ended with code 3"
    assert "out of memory" in describe_death(-9)
    assert describe_death(-11) == "was killed (SIGSEGV)"
