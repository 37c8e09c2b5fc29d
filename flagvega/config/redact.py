"""Keeps secrets out of what is written to files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

REDACTED: Final = "<redacted>"

_SECRET: Final = re.compile(
    r"(^|_)((secrets?|passwords?|passwd|passphrase|credentials?|(api|access|private|auth|ssh)_?keys?)(_|$)|(token|auth)$)",
    re.IGNORECASE,
)
_HARMLESS: Final = re.compile(
    r"^(use|add|disable|no|log|num)_|(pad|eod|eos|bos|unk|mask|cls|class|prefix|suffix|middle|image)_token$",
    re.IGNORECASE,
)
_USER_INFO: Final = re.compile(r"(?<=://)[^/@\s]+@")
_REFERENCE: Final = re.compile(r"\$\{\s*(?:oc\.)?env:\s*\w+\s*\}")


def is_secret(key: str) -> bool:
    """Whether a key's name says that its value is a secret (``WANDB_API_KEY``, not ``num_tokens``)."""
    key = key.replace("-", "_")
    return bool(_SECRET.search(key)) and not _HARMLESS.search(key)


def redact(value: Any, key: str = "") -> Any:
    """A copy without secrets: values of secret-looking keys, and user names and passwords inside URLs.

    References to environment variables are names, not values: they stay.
    """
    if isinstance(value, Mapping):
        return {name: redact(item, key if is_secret(key) else str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(item, key) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if is_secret(key) and not is_reference(value):
        return REDACTED
    return _USER_INFO.sub("", value) if isinstance(value, str) else value


def is_reference(value: Any) -> bool:
    """Whether a value is only a reference to an environment variable, without a default."""
    return not value or bool(isinstance(value, str) and _REFERENCE.fullmatch(value.strip()))
