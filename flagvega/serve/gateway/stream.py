"""Reads along in a stream of server-sent events: when the first token is there, how many came, what was counted."""

from __future__ import annotations

import json
import re
from typing import Any, Final

EVENT: Final = b"data:"
END: Final = b"[DONE]"
_LAST: Final = re.compile(rb"(?:^|\n)data: ?\[DONE]")
_ERROR: Final = re.compile(rb'(?:^|\n)data: ?(\{"error".*)')
TAIL_BYTES: Final = 4096


class StreamReader:
    """What passes by in one answer. No text in it is taken for an event: those begin a line, and JSON has no breaks."""

    def __init__(self) -> None:
        self.begun = False
        """Whether a token came."""
        self.error: dict[str, Any] | None = None
        """What the engine says instead of a token."""
        self.finished = False
        """Whether its end came."""
        self.whole = b""
        """Of what was fed last, and of what was left before: the events that have come whole, up to an error."""
        self._rest = b""
        self._tail = b""

    def feed(self, chunk: bytes) -> int:
        """Take in bytes; the number of tokens in ``whole``, one for each event."""
        # Lines may end as HTTP's do.
        text, mark, self._rest = (self._rest + chunk).replace(b"\r\n", b"\n").rpartition(b"\n\n")
        self.whole = text + mark
        if match := _ERROR.search(self.whole):
            self.error = _error(match[1])
            self.whole = self.whole[: match.start()] + b"\n" if match.start() else b""
        self._tail = (self._tail + self.whole)[-TAIL_BYTES:]
        is_last = _LAST.search(self.whole) is not None
        self.finished = self.finished or is_last
        if self.begun:
            return self.whole.count(b"\n" + EVENT) + self.whole.startswith(EVENT) - is_last
        return sum(self._look(event) for event in self.whole.split(b"\n\n"))

    def _look(self, event: bytes) -> int:
        """Whether an event is a token, as long as there was none."""
        data = event.removeprefix(EVENT).strip()
        if not event.startswith(EVENT) or data == END:
            return 0
        if not self.begun:
            try:
                value = json.loads(data)
            except ValueError:
                return 0
            choices = value.get("choices") if isinstance(value, dict) else None
            self.begun = any(_has_token(choice) for choice in choices or ())
        return int(self.begun)

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


def _error(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)["error"]
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {"message": str(found)}


def _has_token(choice: Any) -> bool:
    """Whether a choice is a token (its text may be empty), and not the role that a conversation begins with."""
    if not isinstance(choice, dict):
        return False
    if "text" in choice or choice.get("finish_reason"):
        return True
    delta = choice.get("delta")
    return isinstance(delta, dict) and any(value for key, value in delta.items() if key != "role")
