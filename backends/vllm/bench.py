"""Runs vLLM's own serving benchmark, load after load: a program for the Python that has vLLM, of which nothing is ours.

A line on stdin is a load, ``{"url", "model", "tokenizer", "requests": [[at_s, input_tokens, output_tokens], ...],
"concurrency"}``; a line on stdout is what came of it, ``{"answers": [{"begun_s", "first_token_s", "took_s",
"input_tokens", "output_tokens", "gaps_s", "error", "instance"}, ...], "duration_s"}`` in the order of the requests, or
``{"error"}``; ``instance`` is the one that a gateway says it asked. One process takes many loads, since importing vLLM
takes seconds. ``vllm bench serve`` itself does not start in every build: its command line looks up the version of a
package named "vllm".
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, redirect_stdout
from itertools import count
from pathlib import Path
from typing import Any

INSTANCE_HEADER = "X-Flagvega-Instance"

_numbers = count()
"""Of prompts: each is another one, so that no cache helps."""
_instances: dict[float, str] = {}
"""By the time at which a request was sent."""


def main() -> None:
    """Until stdin ends."""
    with redirect_stdout(sys.stderr):
        from vllm.benchmarks.serve import add_cli_args
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        parser = FlexibleArgumentParser()
        add_cli_args(parser)
        keep_instances()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        with redirect_stdout(sys.stderr):
            found = run(parser, json.loads(line))
        print(json.dumps(found), flush=True)


def run(parser: argparse.ArgumentParser, load: Mapping[str, Any]) -> dict[str, Any]:
    """One load."""
    from vllm.benchmarks import serve

    _instances.clear()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.jsonl"
        trace.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries(load["requests"])))
        try:
            result = serve.main(parser.parse_args(words(load, trace)))
        except (OSError, ValueError) as error:
            return {"error": f"{type(error).__name__}: {error}"}
    return {"answers": list(answers(result, load["requests"])), "duration_s": result["duration"]}


class Session:
    """vLLM's benchmark asks through it, and it notes which instance answers."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.instance = ""

    @asynccontextmanager
    async def post(self, **words: Any) -> AsyncIterator[Any]:
        """As of the session behind it."""
        async with self._session.post(**words) as response:
            self.instance = response.headers.get(INSTANCE_HEADER, "")
            yield response


def keep_instances() -> None:
    """Have the benchmark's requests noted in ``_instances``."""
    from vllm.benchmarks.lib.endpoint_request_func import ASYNC_REQUEST_FUNCS

    ask = ASYNC_REQUEST_FUNCS["openai"]

    async def noted(request_func_input: Any, session: Any, pbar: Any = None) -> Any:
        noting = Session(session)
        output = await ask(request_func_input=request_func_input, session=noting, pbar=pbar)
        _instances[output.start_time] = noting.instance
        return output

    ASYNC_REQUEST_FUNCS["openai"] = noted


def entries(requests: Sequence[Sequence[float]]) -> Iterator[dict[str, Any]]:
    """Lines of a trace as vLLM's benchmark reads it."""
    for at_s, num_input, num_output in requests:
        lengths = {"input_length": num_input, "output_length": num_output}
        yield {"timestamp": at_s, **lengths, "hash_ids": [next(_numbers)]}


def words(load: Mapping[str, Any], trace: Path) -> list[str]:
    """The benchmark's command line."""
    longest = max(num_input for _, num_input, _ in load["requests"])
    given = [
        "--backend=openai", f"--base-url={load['url']}", "--endpoint=/v1/completions", f"--model={load['model']}",
        f"--tokenizer={load['tokenizer']}", "--dataset-name=timed_trace", f"--dataset-path={trace}",
        f"--num-prompts={len(load['requests'])}", f"--timed-trace-chunk-hash-size={longest}", "--temperature=0",
        "--save-detailed", "--disable-tqdm",
    ]  # fmt: skip
    return given + ([f"--max-concurrency={load['concurrency']}"] if load.get("concurrency") else [])


def answers(result: Mapping[str, Any], requests: Sequence[Sequence[float]]) -> Iterator[dict[str, Any]]:
    """What came of each request; times of the beginning are since the benchmark's."""
    begin = min(start - at_s for start, (at_s, _, _) in zip(result["start_times"], requests, strict=True))
    names = ("start_times", "ttfts", "latencies", "input_lens", "output_lens", "itls", "errors")
    for start, first, took, num_input, num_output, gaps, error in zip(*(result[name] for name in names), strict=True):
        yield {
            "begun_s": start - begin,
            "first_token_s": first,
            "took_s": took,
            "input_tokens": num_input,
            "output_tokens": num_output,
            "gaps_s": gaps,
            "error": "" if num_output else error or "no answer",
            "instance": _instances.get(start, ""),
        }


if __name__ == "__main__":
    main()
