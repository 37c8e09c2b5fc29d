"""Asks an instance whether it serves: its ``/health``, then one completion of one token."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from typing import Any

from flagvega.serve.scrape import find_label

HEALTH_S = 2.0
COMPLETION_S = 120.0
"""The first completion may compile."""
KEY_ENV = "VLLM_API_KEY"


def find_trouble(url: str, model: str, key_env: str | None = KEY_ENV) -> str:
    """Why it does not serve; empty when it does. ``key_env`` names the variable that holds the key it asks for.

    Health alone proves little: some engines answer it, and are ended by their first request.
    """
    try:
        ask(f"{url}/health", None, HEALTH_S, key_env)
        # A token's number: there may be no tokenizer.
        question = {"model": model, "prompt": [1], "max_tokens": 1, "temperature": 0}
        answer = json.loads(ask(f"{url}/v1/completions", question, COMPLETION_S, key_env))
    except (OSError, http.client.HTTPException, ValueError) as error:
        return _words(error)
    return "" if answer.get("choices") else f"a completion without choices: {answer}"


def is_healthy(url: str) -> bool:
    """Whether ``/health`` answers."""
    try:
        ask(f"{url}/health", None, HEALTH_S, None)
    except (OSError, http.client.HTTPException):
        return False
    return True


def fetch_text(url: str, timeout_s: float, key_env: str | None = None) -> str | None:
    """What is there; None when nothing answers."""
    try:
        return ask(url, None, timeout_s, key_env).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return None


def read_max_tokens(url: str, timeout_s: float) -> int | None:
    """What an instance says that a prompt and its answer may have together; None where it does not say."""
    models = fetch_text(f"{url}/v1/models", timeout_s, KEY_ENV)
    most: int | None = json.loads(models)["data"][0].get("max_model_len") if models else None
    return most


def read_cache_tokens(url: str, label: str, timeout_s: float) -> int | None:
    """What its KV cache holds, by a label of its metrics; None where it does not say."""
    metrics = fetch_text(f"{url}/metrics", timeout_s) if label else None
    cache = find_label(metrics, label) if metrics else None
    return int(cache) if cache and cache.isdecimal() else None


def ask(url: str, body: Any, timeout_s: float, key_env: str | None) -> bytes:
    """What a server answers; a body that is not None is sent to it, as JSON."""
    headers = {"Content-Type": "application/json"}
    if key_env and (key := os.environ.get(key_env)):
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers)
    # Always http, of our own making.
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # nosec B310
        content: bytes = answer.read()
    return content


def _words(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"{error.url} answers {error.code}: {error.read(500).decode(errors='replace')}"
    return str(error)
