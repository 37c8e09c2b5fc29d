"""Errors as OpenAI's API has them."""

from __future__ import annotations

import json
from typing import Any


class ApiError(Exception):
    """What a client is told instead of an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.code, self.param = status, message, kind, code, param
        self.retry_after_s = retry_after_s
        """When trying again makes sense."""

    @property
    def body(self) -> bytes:
        """The JSON of the answer."""
        return json.dumps({"error": self.fields}).encode()

    @property
    def fields(self) -> dict[str, Any]:
        """What is in ``error``."""
        return {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}

    @property
    def headers(self) -> dict[str, str]:
        """What goes with it."""
        found = {"Content-Type": "application/json"}
        if self.retry_after_s is not None:
            found["Retry-After"] = str(self.retry_after_s)
        if self.status == 401:
            found["WWW-Authenticate"] = "Bearer"
        return found


def overloaded(message: str, retry_after_s: float) -> ApiError:
    """All instances are busy: to be tried again later."""
    return ApiError(429, message, "rate_limit_error", "overloaded", retry_after_s=max(1, round(retry_after_s)))


def unavailable(message: str, retry_after_s: int = 2) -> ApiError:
    """Nothing serves just now."""
    return ApiError(503, message, "service_unavailable_error", "unavailable", retry_after_s=retry_after_s)
