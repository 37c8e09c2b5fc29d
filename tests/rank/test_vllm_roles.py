"""One real vLLM reads prompts, another writes the answers: greedy tokens are those of one that does both."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.rank.served import Served, make_model, needs_vllm
from tools.bench.serve_engines import free_port
from tools.bench.tiny_model import VOCABULARY

BLOCK = 32
LENGTHS = (1, 2, 31, 32, 33, 34, 63, 64, 65, 66, 100, 128, 129, 130, 150, 200, 220, 240, 250, 255)
"""Of prompts: around whole blocks of the cache, and around what is read in one step."""
NUM_TOKENS = 20

pytestmark = needs_vllm


class Pair(Served):
    """A run of three engines: one reads for another, and the third, of another name, does all by itself."""

    def __init__(self, root: Path) -> None:
        given = {"model": str(make_model(root / "model")), "dtype": "float32", "enforce_eager": True,
                 "max_model_len": 300, "block_size": BLOCK, "max_num_batched_tokens": 96,
                 "max_num_seqs": 8}  # fmt: skip

        def service(name: str, model: str, role: str) -> dict[str, Any]:
            arguments = given | {"served_model_name": model, "port": free_port()}
            return {"serve_id": name, "role": role, "engine_args": arguments}

        services = [("reader", "m", "prefill"), ("writer", "m", "decode"), ("plain", "plain", "both")]
        super().__init__(root, [service(*each) for each in services])

    def hits(self) -> int:
        """Tokens of prompts that the writer took from the reader."""
        return round(self.metric(self.ports[1], "vllm:external_prefix_cache_hits_total"))

    def answer(self, model: str, prompt: Sequence[int]) -> tuple[list[int], str | None]:
        """Greedy tokens, and who read the prompt."""
        answer = self.ask(model, prompt=prompt, max_tokens=NUM_TOKENS, ignore_eos=True, return_token_ids=True)
        return answer["choices"][0]["token_ids"], answer["headers"]["X-Flagvega-Prefill"]

    def answer_all(self, model: str, prompts: Sequence[Sequence[int]]) -> list[tuple[list[int], str | None]]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda prompt: self.answer(model, prompt), prompts))

    @property
    def left(self) -> list[Path]:
        """What lies between the engines."""
        return list((self.directory.root / "serve" / "handover").glob("*"))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    found = Pair(tmp_path_factory.mktemp("roles"))
    try:
        found.wait_for_all()
        yield found
    finally:
        found.stop()
    assert not (found.directory.root / "serve" / "handover").exists()


def draw(seed: int, lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(VOCABULARY) for _ in range(length)] for length in lengths]


def test_answers_are_those_of_one_engine_and_every_cache_was_taken(served: Pair) -> None:
    prompts = draw(1)
    before = served.hits()
    answers = served.answer_all("m", prompts)
    assert [tokens for tokens, _ in answers] == [tokens for tokens, _ in served.answer_all("plain", prompts)]
    assert {reader for _, reader in answers} == {"0"}
    # The last token of a prompt is computed by the writer: it needs what comes of it.
    taken = served.hits() - before
    print(f"{taken} of {sum(LENGTHS)} tokens of prompts were taken over")
    assert taken == sum(LENGTHS) - len(LENGTHS)
    assert served.left == []


def test_what_the_writer_knows_by_itself_is_not_taken_again(served: Pair) -> None:
    (prompt,) = draw(2, [200])
    first, _ = served.answer("m", prompt)
    before = served.hits()
    longer = [*prompt, *first, 5]
    assert served.answer("m", longer)[0] == served.answer("plain", longer)[0]
    assert served.hits() - before == len(longer) - 1 - (200 + NUM_TOKENS - 1) // BLOCK * BLOCK
    assert served.answer("m", prompt)[0] == first
    assert served.left == []


def test_answers_are_right_when_the_reader_is_killed_at_work(served: Pair) -> None:
    prompts = draw(3, LENGTHS * 3)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(served.answer_all, "m", prompts)
        time.sleep(0.5)
        os.killpg(served.process(0).pid, signal.SIGKILL)
        answers = asked.result()
    assert [tokens for tokens, _ in answers] == [tokens for tokens, _ in served.answer_all("plain", prompts)]
    assert {reader for _, reader in answers} == {"0", None}
    served.wait_for_all()  # it was started again
    assert served.answer_all("m", draw(4)) == [(tokens, "0") for tokens, _ in served.answer_all("plain", draw(4))]
