"""The answers of a load in a file: when each of their tokens came, so that more can be learned from them later."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, Final

from flagvega.serve.traffic import Answered

ANSWERS_FILE: Final = "answers.json"
"""In the folder of a trial."""


def answers_to_json(answers: Iterable[Answered]) -> list[dict[str, Any]]:
    """One object for each; tokens in whole milliseconds since the load began, the first one's, then differences."""
    return [_to_json(answer) for answer in answers]


def _to_json(answer: Answered) -> dict[str, Any]:
    moments = accumulate((answer.begun_s + answer.first_token_s, *answer.gaps_s))
    whole = [0, *(round(moment * 1e3) for moment in moments)]
    found: dict[str, Any] = {"instance": answer.instance} if answer.instance else {}
    found |= {"begun_ms": round(answer.begun_s * 1e3), "input_tokens": answer.input_tokens}
    if answer.error:
        return found | {"error": answer.error}
    # An engine's server may hand out two tokens at once: there are fewer moments than tokens then.
    more = {"output_tokens": answer.output_tokens} if answer.output_tokens != len(whole) - 1 else {}
    return found | more | {"tokens_ms": [later - earlier for earlier, later in pairwise(whole)]}


def answers_of_json(rows: Sequence[Mapping[str, Any]]) -> tuple[Answered, ...]:
    """The answers that were written, to half a millisecond."""
    return tuple(_of_json(row) for row in rows)


def _of_json(row: Mapping[str, Any]) -> Answered:
    begun_s, num_input, instance = row["begun_ms"] / 1e3, row["input_tokens"], row.get("instance", "")
    if "error" in row:
        return Answered(begun_s, 0.0, 0.0, num_input, 0, row["error"], instance=instance)
    first, *gaps = row["tokens_ms"]
    first_s, took_s = first / 1e3 - begun_s, (first + sum(gaps)) / 1e3 - begun_s
    num_output = row.get("output_tokens", 1 + len(gaps))
    gaps_s = tuple(gap / 1e3 for gap in gaps)
    return Answered(begun_s, first_s, took_s, num_input, num_output, "", gaps_s, instance)
