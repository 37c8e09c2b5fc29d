"""What a client asks, as far as routing needs to know it; the engine judges the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from flagvega.serve.gateway.errors import ApiError
from flagvega.serve.gateway.prefixes import hash_blocks

TRANSFER: Final = "kv_transfer_params"
"""Where vLLM's connectors say which cache belongs to a request."""
_OF_PROMPT: Final = ("echo", "prompt_logprobs", "use_beam_search", "best_of")
"""What makes an answer say something of its prompt, or be many."""
MOST_TOKENS: Final = 1_000_000
"""No engine gives more at once; what is asked beyond is as good as this."""
MOST_COMMAS: Final = 1 << 21
"""In a body: with more values than that, reading it would keep everybody else waiting."""


@dataclass(frozen=True)
class Question:
    """A request for a completion."""

    path: str
    body: bytes
    model: str
    stream: bool
    num_characters: int
    """Of the prompts that are text."""
    num_ids: int
    """Of the prompts that are token ids."""
    blocks: tuple[int, ...]
    """Of the prompt; empty when there are several."""
    max_tokens: int | None
    """What the answer is limited to."""
    num_answers: int
    """Sequences that are generated at once."""
    is_single: bool
    """Whether one instance may read the prompt and another write the answer."""
    names_cache: bool
    """Whether it says where the cache of its prompt is, which only the gateway may."""


def read_question(path: str, body: bytes) -> Question:
    """The question of a body.

    :raises ApiError: when it is no JSON object with a model.
    """
    if body.count(b",") > MOST_COMMAS:
        raise ApiError(413, f"the body has more than {MOST_COMMAS} commas", code="request_too_large")
    try:
        value = json.loads(body)
    except RecursionError as error:
        raise ApiError(400, "the body is nested too deeply") from error
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ApiError(400, "the body is not a JSON object")
    model = value.get("model")
    if not isinstance(model, str) or not model:
        raise ApiError(400, "'model' is missing: GET /v1/models lists what is served", param="model")
    prompts = [_chat_text(value.get("messages"))] if path.endswith("/chat/completions") else _prompts(value)
    num_answers = len(prompts) * (count(value.get("n")) or 1)
    return Question(
        path=path,
        body=body,
        model=model,
        stream=value.get("stream") is True,
        num_characters=sum(len(prompt) for prompt in prompts if isinstance(prompt, str)),
        num_ids=sum(len(prompt) for prompt in prompts if not isinstance(prompt, str)),
        blocks=hash_blocks(prompts[0]) if len(prompts) == 1 else (),
        max_tokens=count(value.get("max_completion_tokens")) or count(value.get("max_tokens")),
        num_answers=num_answers,
        is_single=num_answers == 1 and all(value.get(key) is None or value[key] is False for key in _OF_PROMPT),
        names_cache=value.get(TRANSFER) is not None,
    )


def count(value: Any) -> int | None:
    """A number of something, when it is one; the engine refuses what is not."""
    is_one = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return min(value, MOST_TOKENS) if is_one else None


def _prompts(value: Mapping[str, Any]) -> list[str | Sequence[int]]:
    prompt = value.get("prompt", "")
    if isinstance(prompt, list):
        if all(isinstance(each, int) for each in prompt):
            return [tuple(prompt)]
        return [_ids_or_text(each) for each in prompt]
    return [_ids_or_text(prompt)]


def _ids_or_text(prompt: Any) -> str | Sequence[int]:
    if isinstance(prompt, list) and all(isinstance(each, int) for each in prompt):
        return tuple(prompt)
    return prompt if isinstance(prompt, str) else ""


def _chat_text(messages: Any) -> str:
    """The text of a conversation; images and the like do not count."""
    found: list[str] = []
    for message in messages if isinstance(messages, list) else []:
        content = message.get("content") if isinstance(message, dict) else None
        parts = content if isinstance(content, list) else [{"text": content}]
        texts = [part.get("text") for part in parts if isinstance(part, dict)]
        role = str(message.get("role")) if isinstance(message, dict) else ""
        found += [role, *(text for text in texts if isinstance(text, str))]
    return "\n".join(found)
