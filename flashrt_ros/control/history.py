"""The joint states of the last moments, to look up where the robot was when something was observed."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any


class StateHistory:
    """Keeps what it is given, unread; reading it is left to whoever looks one up. length: messages kept.

    One thread may add while another looks up.
    """

    def __init__(self, length: int = 2000) -> None:
        self._messages: deque[tuple[int, Any]] = deque(maxlen=length)
        self._lock = threading.Lock()

    def add(self, stamp_ns: int, message: Any) -> None:
        """stamp_ns: of the message; one that is older than the newest starts the history anew."""
        with self._lock:
            if self._messages and stamp_ns < self._messages[-1][0]:
                self._messages.clear()
            self._messages.append((stamp_ns, message))

    def at(self, time_ns: int, tolerance_ns: int) -> Any | None:
        """The message nearest in time; None where none is within the tolerance."""
        with self._lock:
            messages = list(self._messages)
        nearest = min(messages, key=lambda entry: abs(entry[0] - time_ns), default=None)
        if nearest is None or abs(nearest[0] - time_ns) > tolerance_ns:
            return None
        return nearest[1]
