"""The gate itself: it turns red when the mathematics is wrong, and the fork server leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.rank.client import RankError, Server
from tests.rank.gate import TOLERANCE, Gate

FAULTS = {
    "keep_gradients_at_boundaries": "llama dp4 | dp2 | dp1 calculate_per_token_loss=false",
    "count_replicas_in_norm": "llama dp2 | tp2",
    "leave_norm_alone": "llama dp2 | tp2",
    "draw_by_tp_rank": "llama tp2",
    "forget_tied_stage": "gpt tp2 | dp2",
    "divide_by_own_tokens": "llama dp2 | dp1",
    "forget_zigzag": "llama cp2 | dp2",
}


@pytest.mark.slow
@pytest.mark.parametrize("mutation", FAULTS)
def test_the_gate_finds_a_fault(gate: Gate, mutation: str) -> None:
    assert gate.deviation(FAULTS[mutation]) < TOLERANCE
    assert gate.deviation(FAULTS[mutation], mutation) > 100 * TOLERANCE


def test_a_failing_rank_is_blamed_with_its_traceback_and_takes_the_others_along(gate: Gate) -> None:
    with pytest.raises(RankError, match=r"rank 2:(.|\n)*a fault on purpose"):
        gate.run("llama dp2 | tp2", mutation="fail_on_rank_2")
    assert gate.deviation("llama dp2") < TOLERANCE


def test_ranks_that_hang_are_ended(gate: Gate) -> None:
    with pytest.raises(RankError, match="took too long"):
        gate.run("llama dp2", mutation="hang", timeout_s=3.0)


def test_no_rank_outlives_the_server(tmp_path: Path) -> None:
    with Server() as server, pytest.raises(RankError, match="the fork server ended with code -9"):
        Gate(server, tmp_path).run("llama dp2", tmp_path / "run", mutation="kill_server")
    pids = [int(log.read_text().split()[0]) for log in tmp_path.rglob("rank-*.log")]
    assert len(pids) == 2
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=5)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
