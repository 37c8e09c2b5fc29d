"""A batch of prompts through the real vLLM: cut in the middle, it goes on, and every prompt has one result."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import yaml

from flagvega.records import read_json_lines
from flagvega.run.directory import Run, RunDirectory
from flagvega.run.processes import find_processes
from tests.rank.served import START_S, flagvega, make_model, needs_vllm

NUM_PROMPTS, NUM_TOKENS = 24, 25

pytestmark = needs_vllm


def read(directory: RunDirectory) -> Run:
    run = directory.read()
    assert run is not None
    return run


def test_a_batch_that_was_killed_goes_on_and_every_prompt_has_one_result(tmp_path: Path) -> None:
    model = str(make_model(tmp_path / "model", text=True))
    llm = {"model": model, "dtype": "float32", "enforce_eager": True, "max_model_len": 256, "max_num_seqs": 4}
    prompts = [f"question {i}" for i in range(NUM_PROMPTS - 1)] + ["x" * 300]  # the last is too long
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    sampling = {"max_tokens": NUM_TOKENS, "temperature": 0.8, "seed": 1, "ignore_eos": True}
    config = {
        "experiment": {
            "exp_name": "batch",
            "exp_dir": str(tmp_path / "out"),
            "task": {"type": "inference", "backend": "vllm"},
        },
        "cluster": {"nodes": [{"chip": "emu-l"}]},
        "inference": {"llm": llm, "generate": {"prompts": "prompts.txt", "sampling": sampling}},
    }
    (tmp_path / "batch.yaml").write_text(yaml.safe_dump(config))
    where = ["--config-path", str(tmp_path), "--config-name", "batch"]
    directory, results = RunDirectory(tmp_path / "out"), tmp_path / "out" / "results.jsonl"

    flagvega(*where, "action=run", "detach=true")
    deadline = time.monotonic() + START_S
    while len(read_json_lines(results)) < 6:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    keeper = read(directory).agent_pid
    assert keeper
    os.kill(keeper, signal.SIGKILL)
    while not read(directory).finished or read(directory).alive:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert (read(directory).state, find_processes(read(directory).token)) == ("failed", [])
    before = read_json_lines(results)
    assert len(before) < NUM_PROMPTS
    with results.open("a") as file:
        file.write('{"index": 3, "prom')  # as a cut write leaves it

    assert f"{NUM_PROMPTS} of {NUM_PROMPTS} prompts have a result" in flagvega(*where, "action=run")
    rows = read_json_lines(results)
    assert rows[: len(before)] == before
    assert sorted(row["index"] for row in rows) == list(range(NUM_PROMPTS))
    assert all(row["prompt"] == prompts[row["index"]] for row in rows)
    (refused,) = [row for row in rows if "error" in row]
    assert "maximum context length" in refused["error"]
    assert all(row["completion_tokens"] == NUM_TOKENS for row in rows if row != refused)
    assert f"all {NUM_PROMPTS} prompts have a result" in flagvega(*where, "action=run")
