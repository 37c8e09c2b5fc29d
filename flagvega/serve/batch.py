"""Sends a batch of prompts through the instances of a run, and writes each result as it comes.

``python -P -m flagvega.serve.batch --run-dir DIR``: started by the keeper. Each instance takes the next prompt when it
has a place free, so faster ones do more. Prompts that have a result are not asked again, so a run that was cut goes on.
"""

from __future__ import annotations

import argparse
import http.client
import json
import queue
import sys
import threading
import time
import urllib.error
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from flagvega.errors import ConfigError, Fault
from flagvega.records import append_json_line, read_json, read_json_lines
from flagvega.serve.probe import KEY_ENV, ask, find_trouble

BATCH_FILE: Final = "job/batch.json"
RESULT_FILE: Final = "results.jsonl"
DEFAULT_SLOTS: Final = 32
MAX_SLOTS: Final = 256
"""Prompts in flight at an instance, each of which takes a thread here."""
ANSWER_S: Final = 3600.0
RETRY_S: Final = 1.0
ATTEMPTS: Final = 600
"""How often a prompt is sent again when an instance does not answer: it may be starting again."""


def read_prompts(value: Any, folder: Path) -> list[str]:
    """The prompts: given, or those of a file.

    :raises ConfigError: when the file cannot be read.
    """
    if isinstance(value, list):
        return value
    path = Path(value).expanduser()
    path = folder / path if not path.exists() and (folder / path).exists() else path
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [_prompt(line) for line in lines] if path.suffix == ".jsonl" else lines
    except OSError as error:
        raise ConfigError(Fault(f"cannot be read: {error.strerror}", str(path))) from error
    except (ValueError, KeyError, TypeError) as error:
        fix = 'each line is a text in quotes or an object with "prompt"'
        raise ConfigError(Fault(f"not JSON lines of prompts: {error}", str(path), fix)) from error


def _prompt(line: str) -> str:
    value = json.loads(line)
    found = value["prompt"] if isinstance(value, dict) else value
    if not isinstance(found, str):
        raise TypeError(f"{line[:80]} holds no text")
    return found


def count_done(results: Path, prompts: Sequence[str]) -> set[int]:
    """Indices of the prompts that have a result."""
    rows = read_json_lines(results)
    return {row["index"] for row in rows if row["index"] < len(prompts) and prompts[row["index"]] == row["prompt"]}


class Batch:
    """Prompts on their way."""

    def __init__(self, run_dir: Path) -> None:
        asked = read_json(run_dir / BATCH_FILE)
        self.sampling: Mapping[str, Any] = asked["sampling"]
        self.instances: Sequence[Mapping[str, Any]] = asked["instances"]
        self.prompts: list[str] = asked["prompts"]
        self.results = run_dir / RESULT_FILE
        done = count_done(self.results, self.prompts)
        self.waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for index in range(len(self.prompts)):
            if index not in done:
                self.waiting.put(index)
        self.writing = threading.Lock()
        print(f"{len(done)} of {len(self.prompts)} prompts have a result", flush=True)

    def run(self) -> None:
        """Until every prompt has a result."""
        threads = [
            threading.Thread(target=self._work, args=(instance,), daemon=True)
            for instance in self.instances
            for _ in range(min(instance["slots"] or DEFAULT_SLOTS, MAX_SLOTS, max(1, self.waiting.qsize())))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _work(self, instance: Mapping[str, Any]) -> None:
        while find_trouble(instance["url"], instance["model"]):
            time.sleep(RETRY_S)
        while True:
            try:
                index = self.waiting.get_nowait()
            except queue.Empty:
                return
            result = self._ask(instance, self.prompts[index])
            with self.writing:
                append_json_line(self.results, {"index": index, "prompt": self.prompts[index], **result})

    def _ask(self, instance: Mapping[str, Any], prompt: str) -> dict[str, Any]:
        """The result of a prompt: its texts, or why there are none."""
        question = {**self.sampling, "model": instance["model"], "prompt": prompt}
        trouble = ""
        for _ in range(ATTEMPTS):
            try:
                answer = json.loads(ask(f"{instance['url']}/v1/completions", question, ANSWER_S, KEY_ENV))
                choices = answer["choices"]
                drawn = {"logprobs": [choice["logprobs"] for choice in choices]} if "logprobs" in question else {}
                return {
                    "texts": [choice["text"] for choice in choices],
                    "finish_reasons": [choice["finish_reason"] for choice in choices],
                    "prompt_tokens": answer["usage"]["prompt_tokens"],
                    "completion_tokens": answer["usage"]["completion_tokens"],
                    **drawn,
                }
            except urllib.error.HTTPError as error:
                trouble = error.read(2000).decode(errors="replace")
                if error.code < 500:  # it will not be answered another time either
                    return {"error": trouble}
            except (OSError, http.client.HTTPException, ValueError) as error:
                trouble = str(error)
            time.sleep(RETRY_S)
        return {"error": trouble}


def main(argv: Sequence[str] | None = None) -> int:
    """Send the batch of the run in ``--run-dir``."""
    parser = argparse.ArgumentParser(description="Send a batch of prompts through the instances of a run.")
    parser.add_argument("--run-dir", type=Path, required=True)
    Batch(parser.parse_args(argv).run_dir).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
