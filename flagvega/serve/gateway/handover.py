"""A question for two instances: the one reads the prompt, the other writes the answer with what the first computed.

In the words of vLLM's connectors: a request with ``do_remote_decode`` is answered with the ``kv_transfer_params`` of
the request that goes on elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from flagvega.serve.gateway.question import TRANSFER, Question

KEEP: Final[Mapping[str, Any]] = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
"""Asks an instance to keep what it computed of a prompt for another one."""
_OF_ANSWER: Final = ("min_tokens", "stream_options")


def ask_to_read(question: Question) -> bytes:
    """The body for the instance that reads: the same question, of whose answer only a token is wanted."""
    value = {key: item for key, item in json.loads(question.body).items() if key not in _OF_ANSWER}
    limits = {key: 1 for key in ("max_tokens", "max_completion_tokens") if key == "max_tokens" or key in value}
    return json.dumps(value | limits | {"stream": False, TRANSFER: KEEP}).encode()


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
