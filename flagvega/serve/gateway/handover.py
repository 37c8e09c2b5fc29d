"""A question for two instances: the one reads the prompt, the other writes the answer with what the first computed.

In the words of vLLM's connectors: a request with ``do_remote_decode`` is answered with the ``kv_transfer_params`` of
the request that goes on elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from flagvega.serve.gateway.question import TRANSFER, Question, count

KEEP: Final[Mapping[str, Any]] = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
"""Asks an instance to keep what it computed of a prompt for another one."""


def ask_to_read(question: Question) -> bytes:
    """The body for the instance that reads: the same question, of whose answer only a token is wanted.

    Limits that are none stay as they are: the instance refuses them, and keeps nothing for nobody.
    """
    value = json.loads(question.body)
    value.pop("stream_options", None)
    least = value.get("min_tokens")
    if isinstance(least, int) and least <= (question.max_tokens or least):
        del value["min_tokens"]
    for key in ("max_tokens", "max_completion_tokens"):
        if count(value.get(key)) or (key == "max_tokens" and value.get(key) is None):
            value[key] = 1
    return json.dumps(value | {"stream": False, TRANSFER: KEEP}).encode()


def ask_to_write(question: Question, answer: bytes) -> Question:
    """The question for the instance that writes, after what the one that read has answered; as it was, when that says
    nothing of a cache: then the prompt is read again."""
    try:
        params = json.loads(answer).get(TRANSFER)
    except (ValueError, AttributeError):
        params = None
    if not isinstance(params, dict):
        return question
    return replace(question, body=json.dumps({**json.loads(question.body), TRANSFER: params}).encode())
