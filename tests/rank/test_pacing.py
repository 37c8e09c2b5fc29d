"""What an emulated chip is told of its work is what the rank does."""

from __future__ import annotations

from tests.rank.gate import Gate


def updated(gate: Gate, line: str) -> list[int]:
    """For how many parameters each rank's optimizer is paced in a step."""
    done = gate.run(line, mutation="print_updated", train_iters=1)
    logs = sorted(done.directory.root.glob("logs/*/rank-*.log"))
    return [int(row.split()[1]) for log in logs for row in log.read_text().splitlines() if row.startswith("updated")]


def test_replicas_that_share_the_optimizer_each_update_a_part(gate: Gate) -> None:
    whole = updated(gate, "llama dp2 | tp2")
    parts = updated(gate, "llama dp2 | tp2 distopt=true")
    assert parts[0] + parts[1] == whole[0] == whole[1]
    assert 0.45 < parts[0] / whole[0] < 0.55
    assert parts[2:] == whole[2:]
