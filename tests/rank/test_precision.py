"""Half precision: equal up to its rounding. Deterministic runs: equal to the last bit."""

from __future__ import annotations

import pytest

from tests.rank.gate import Gate, curve

BF16_TOLERANCE = 1e-2
"""Relative; a unit in the last place of bf16 is 4e-3 to 8e-3 of a number. Seen: up to 5e-3, of gradient norms."""
FP16_TOLERANCE = 3e-3
"""Relative; fp16 has three bits more, but its loss scaling costs some. Seen: up to 1.2e-3."""
SCALED = "fp16=true initial_loss_scale=65536 hysteresis=1 min_loss_scale=1"


@pytest.mark.parametrize(
    "line",
    [
        "llama tp2 sp | dp3 bf16=true",
        "gpt dp2 | tp2 bf16=true distopt=true",
        "moe ep2 dp2 | tp2 etp2 sp bf16=true",
        "llama dp2 | tp2 bf16=true calculate_per_token_loss=false",
    ],
)
def test_bf16_is_equal_up_to_rounding(gate: Gate, line: str) -> None:
    assert gate.deviation(line) < BF16_TOLERANCE


@pytest.mark.parametrize(
    "line",
    [
        "llama tp2 sp | dp3 fp16=true loss_scale=16",
        "gpt dp3 | tp2 fp16=true loss_scale=16 distopt=true",
        f"llama dp2 pp2 {SCALED} calculate_per_token_loss=false distopt=true",
    ],
)
def test_fp16_is_equal_up_to_rounding(gate: Gate, line: str) -> None:
    assert gate.deviation(line) < FP16_TOLERANCE


def test_an_overflow_on_one_stage_is_skipped_by_all_and_halves_the_loss_scale(gate: Gate) -> None:
    line = f"llama tp2 | dp2 {SCALED} train_iters=4"
    rows = gate.run(line).rows
    assert [row["loss_scale"] for row in rows] == [32768.0, 16384.0, 8192.0, 4096.0]
    assert all(row["skipped"] for row in rows)
    assert gate.deviation(line) < FP16_TOLERANCE


@pytest.mark.parametrize("line", ["llama tp2 sp | dp2 bf16=true", "gpt dp2 | tp2 distopt=true"])
def test_a_deterministic_run_repeats_to_the_last_bit(gate: Gate, line: str) -> None:
    first, second = (curve(gate.run(f"{line} deterministic_mode=true")) for _ in range(2))
    assert first == second
