"""Environment variables whose values must not be written anywhere."""

from __future__ import annotations

import re

_SECRET = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|KEY|APIKEY)($|_)", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Whether a variable is, by its name, a password, a key or a token."""
    return _SECRET.search(name) is not None
