"""Waiting for results that take about as long each time: asleep at first, then awake for what comes next."""

from __future__ import annotations

import time
from collections import deque

RUN_UP_S = 1.5e-3
"""Before a result: enough to rehearse what is done with it, and so little that it is still at hand then."""

_REMEMBERED = 8


class Patience:
    """Remembers how long the last results took; one thread at a time. Times are of `time.perf_counter` [s]."""

    def __init__(self) -> None:
        self._took_s = deque[float](maxlen=_REMEMBERED)

    def rest(self, began: float) -> bool:
        """Sleep until RUN_UP_S before the earliest end of what began then. False where there was no time to."""
        left_s = began + min(self._took_s, default=0.0) - RUN_UP_S - time.perf_counter()
        if left_s <= 0:
            return False
        time.sleep(left_s)
        return True

    def ended(self, began: float) -> None:
        """What began then has ended; or before, but was looked for only now."""
        self._took_s.append(time.perf_counter() - began)
