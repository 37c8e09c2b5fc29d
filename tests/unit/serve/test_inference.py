"""Batches of prompts in YAML: read, judged with all their faults, and asked with vLLM's own words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from flagvega.cli import main
from flagvega.errors import ExitCode
from flagvega.records import append_json_line

Ask = Callable[..., dict[str, Any]]
TASK = {"exp_name": "s", "task": {"type": "inference", "backend": "vllm"}}
LLM = {"model": "model", "max_num_seqs": 4}


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """The JSON that an action answers about an inference."""
    monkeypatch.chdir(tmp_path)

    def run(inference: Any, code: int = 0, action: str = "dryrun", task: Any = TASK) -> dict[str, Any]:
        (tmp_path / "exp.yaml").write_text(yaml.safe_dump({"experiment": task, "inference": inference}))
        assert main(["--config-path", ".", "--config-name", "exp", f"action={action}", "output=json"]) == code
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        return document

    return run


def asked(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(document["files"]["job/batch.json"])
    return found


def whats(document: dict[str, Any]) -> str:
    return "\n".join(f"{fault['where']}: {fault['what']} | {fault['fix']}" for fault in document["faults"])


def test_flagscales_form_becomes_an_instance_and_a_batch(ask: Ask) -> None:
    entrypoint = {**TASK, "task": {**TASK["task"], "entrypoint": "flagscale/inference/inference_aquila.py"}}  # type: ignore[dict-item]
    document = ask({"llm": LLM, "generate": {"prompts": ["a", "b"], "sampling": {"top_p": 0.95, "stop": "x"}}},
                   task=entrypoint)  # fmt: skip
    batch = asked(document)
    assert batch["prompts"] == ["a", "b"]
    assert batch["sampling"] == {"top_p": 0.95, "stop": ["x"]}
    assert [each["slots"] for each in batch["instances"]] == [4]
    assert "--max-num-seqs=4" in document["commands"][0]["argv"]


def test_prompts_may_be_lines_of_a_file(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("one\n\ntwo words\n")
    assert asked(ask({"llm": LLM, "generate": {"prompts": "prompts.txt"}}))["prompts"] == ["one", "two words"]
    (tmp_path / "prompts.jsonl").write_text('"one\\nline"\n{"prompt": "two", "more": 1}\n')
    assert asked(ask({"llm": LLM, "generate": {"prompts": "prompts.jsonl"}}))["prompts"] == ["one\nline", "two"]
    (tmp_path / "prompts.jsonl").write_text('{"text": "two"}\n')
    faults = whats(ask({"llm": LLM, "generate": {"prompts": "prompts.jsonl"}}, ExitCode.CONFIG))
    assert "JSON lines of prompts" in faults


def test_all_mistakes_are_named_with_their_places(ask: Ask) -> None:
    wrong = {"llm": {"modell": "m"}, "generate": {"prompts": [1], "sampling": {"temprature": 1, "top_k": "few"}}}
    faults = whats(ask(wrong, ExitCode.CONFIG))
    for words in ("exp.yaml:", "inference.llm.modell", "expected a list of texts", "did you mean 'temperature'",
                  "sampling.top_k", "expected an integer"):  # fmt: skip
        assert words in faults, words
    assert "'inference' is missing" in whats(ask(None, ExitCode.CONFIG))
    other = {**TASK, "task": {"type": "inference", "backend": "sglang"}}
    faults = whats(ask({"llm": LLM, "generate": {"prompts": ["a"]}}, ExitCode.CONFIG, task=other))
    assert "experiment.task.backend" in faults


def test_results_are_not_mixed_and_a_finished_batch_starts_nothing(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    question = {"llm": LLM, "generate": {"prompts": ["a"], "sampling": {"seed": 1}}}
    folder = tmp_path / "outputs" / "s"
    (folder / "job").mkdir(parents=True)
    (folder / "job" / "batch.json").write_text(ask(question)["files"]["job/batch.json"])
    append_json_line(folder / "results.jsonl", {"index": 0, "prompt": "a", "texts": ["b"]})
    assert ask(question, action="run")["state"] == "done"
    question["generate"]["sampling"] = {"seed": 2}  # type: ignore[index]
    assert "drawn in another way" in whats(ask(question, ExitCode.CONFIG, "run"))
