"""``plan.json`` says enough to be scored by whoever reads docs/planner.md, without any code of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.plan.asked import ask


def score(plan: dict[str, Any]) -> float:
    """Seconds of a step, from the file alone."""
    said = plan["predictions"]
    stages, m = said["stages"], said["num_micro_batches"]
    limits = [stage["in_flight"] for stage in plan["decisions"]["stages"]]
    transfer = [boundary["transfer_s"] for boundary in said["boundaries"]]
    last = len(stages) - 1
    orders = []
    for limit in limits:
        warm = min(limit - 1, m)
        order = [("F", i) for i in range(warm)]
        for i in range(m):
            order += [("F", warm + i)] * (warm + i < m) + [("B", i)]
        orders.append(order)
    done: dict[tuple[int, str, int], float] = {}
    clock, links = [0.0] * len(stages), {}
    while any(orders):
        for s, order in enumerate(orders):
            while order:
                kind, i = order[0]
                before = s - 1 if kind == "F" else s + 1
                is_first = (kind == "F" and s == 0) or (kind == "B" and s == last)
                if not is_first and (before, kind, i) not in done:
                    break
                begin = clock[s] if is_first else max(clock[s], done[before, kind, i])
                clock[s] = begin + stages[s]["forward_s" if kind == "F" else "backward_s"]
                after = s if kind == "F" else s - 1
                if 0 <= after < last:
                    links[after, kind] = max(clock[s], links.get((after, kind), 0.0)) + transfer[after]
                    done[s, kind, i] = links[after, kind]
                order.pop(0)
    end = max(time_s + stage["reduction_s"] for time_s, stage in zip(clock, stages, strict=True))
    return end + max(stage["optimizer_s"] for stage in stages)


@pytest.mark.usefixtures("conf")
@pytest.mark.parametrize("num_stages", [2, 4])
def test_a_plan_s_file_is_enough_to_score_it(num_stages: int, capsys: pytest.CaptureFixture[str]) -> None:
    stages = f"train.system={{pipeline_model_parallel_size: {num_stages}}}"
    code, _ = ask(capsys, "action=plan", stages, "train.model.micro_batch_size=1", "plan.time_s=1")
    assert code == 0
    plan = json.loads(Path("out/plan.json").read_text())
    assert len(plan["predictions"]["boundaries"]) == num_stages - 1
    assert score(plan) == pytest.approx(plan["predictions"]["iteration_s"], rel=1e-12)
