"""Reads along in a stream of server-sent events: when the first token is there, how many came, what was counted."""

from __future__ import annotations

import json
from typing import Any, Final

EVENT: Final = b"data:"
END: Final = b"[DONE]"
TAIL_BYTES: Final = 4096


class StreamReader:
    """What passes by in one answer."""

    def __init__(self) -> None:
        self.begun = False
        """Whether a token came."""
        self.error: dict[str, Any] | None = None
        """What the engine says instead of a first token."""
        self.finished = False
        """Whether its end came."""
        self._rest = b""
        self._tail = b""

    def feed(self, chunk: bytes) -> int:
        """Take in bytes; the number of tokens in them, one for each event."""
        if self.begun:
            self._tail = (self._tail + chunk)[-TAIL_BYTES:]
            self.finished = self.finished or END in self._tail
            return chunk.count(EVENT) - chunk.count(END)
        *events, self._rest = (self._rest + chunk).split(b"\n\n")
        num = 0
        for event in events:
            num += self._look(event)
        if self.begun:
            self._tail = (b"\n\n".join(events) + b"\n\n" + self._rest)[-TAIL_BYTES:]
            self.finished = END in self._tail
        return num

    def _look(self, event: bytes) -> int:
        data = event.removeprefix(EVENT).strip()
        if not event.startswith(EVENT) or data == END:
            self.finished = self.finished or data == END
            return 0
        try:
            value = json.loads(data)
        except ValueError:
            return 0
        if not isinstance(value, dict):
            return 0
        if isinstance(value.get("error"), dict) and not self.begun:
            self.error = value["error"]
            return 0
        if self.begun or any(_has_token(choice) for choice in value.get("choices") or ()):
            self.begun = True
            return 1
        return 0

    def usage(self) -> dict[str, Any]:
        """What the engine counted, if it was asked to."""
        for event in reversed(self._tail.split(b"\n\n")):
            if b'"usage"' in event and event.startswith(EVENT):
                try:
                    found = json.loads(event.removeprefix(EVENT)).get("usage")
                except ValueError:
                    return {}
                return found if isinstance(found, dict) else {}
        return {}


def _has_token(choice: Any) -> bool:
    """Whether a choice is a token (its text may be empty), and not the role that a conversation begins with."""
    if not isinstance(choice, dict):
        return False
    if "text" in choice or choice.get("finish_reason"):
        return True
    delta = choice.get("delta")
    return isinstance(delta, dict) and any(value for key, value in delta.items() if key != "role")
